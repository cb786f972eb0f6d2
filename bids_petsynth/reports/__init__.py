"""The participant's report and the methods text, made from the files of the output folder alone."""
