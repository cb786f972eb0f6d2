"""The commands: parsing of arguments and one short module per level."""
