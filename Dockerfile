# docker build -t petsynth .                                    CUDA (what the default package index brings)
# docker build -t petsynth:cpu --build-arg TORCH_INDEX=https://…/whl/cpu .
# docker run --rm --gpus all -v /data/bids:/bids:ro -v /data/out:/out petsynth /bids /out participant
# Any user, no network and a read-only root will do, if there is a /tmp:
#   docker run --user "$(id -u):$(id -g)" --network none --read-only --tmpfs /tmp --cap-drop all …
#
# BASE             any image with Python 3.11 to 3.13 as `python3` and its venv module
# TORCH_INDEX      package index for torch alone; empty: the default one
# EXTRAS           extras of the package, for example "language"
# TEMPLATES        TemplateFlow templates to store, as --output-spaces names them; empty: none, and no download of them
# PIP_CONFIG_FILE  a pip.conf on a volume of the build (index, certificate); nothing of it is left in the image
ARG BASE=docker.io/library/python:3.11-slim-bookworm

# All dependencies come as wheels, but for one of pure Python, so this stage has no compiler either.
FROM ${BASE} AS build
ARG TORCH_INDEX=
ARG EXTRAS=
ARG PIP_CONFIG_FILE
ENV PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_ROOT_USER_ACTION=ignore
RUN python3 -m venv /opt/petsynth
ENV PATH=/opt/petsynth/bin:$PATH
WORKDIR /src
# The dependencies before the code: a change of the code does not install them again.
COPY pyproject.toml constraints.txt ./
# Torch without its dependencies first, because TORCH_INDEX serves it alone; the second call adds them.
RUN python -c 'import tomllib; print(*tomllib.load(open("pyproject.toml", "rb"))["project"]["dependencies"], sep="\n")' \
        > requirements.txt \
    && grep '^torch==' constraints.txt > torch.txt \
    && pip install ${TORCH_INDEX:+--index-url "$TORCH_INDEX"} --no-deps --requirement torch.txt \
    && pip install --constraint constraints.txt --requirement requirements.txt
COPY README.md LICENSE ./
COPY bids_petsynth bids_petsynth
RUN pip install --constraint constraints.txt ".${EXTRAS:+[$EXTRAS]}" \
    && pip check
# What only developers of the dependencies need: 300 MB. `tests/container/check_imports.py` looks whether it was too much.
RUN site=$(python -c 'import sysconfig; print(sysconfig.get_path("purelib"))') \
    && rm -r "$site"/torch/include "$site"/torch/test \
    && find "$site"/torch/bin -type f ! -name torch_shm_manager -delete \
    && for package in matplotlib numpy pandas prov scipy sklearn statsmodels sympy traits; do \
           find "$site/$package" -type d -name tests -prune -exec rm -r {} +; \
       done \
    && pip uninstall --yes pip

# TemplateFlow's folder is made in any case (names of all templates, no data), since it cannot be on a read-only root.
FROM build AS templates
ARG TEMPLATES="MNI152NLin2009cAsym:res-1 MNI152NLin2009cAsym:res-2"
ENV TEMPLATEFLOW_HOME=/opt/templateflow TEMPLATEFLOW_AUTOUPDATE=0
# shellcheck disable=SC2086
RUN python -c 'import sys, templateflow.api; \
from bids_petsynth.anatomy.normalisation import find_template; \
[find_template(name, int(number or 2)) for name, _, number in (word.partition(":res-") for word in sys.argv[1:])]' \
        ${TEMPLATES} \
    && chmod -R a+rX /opt/templateflow \
    && mkdir -p /mountpoints/bids /mountpoints/out /mountpoints/work

# No RUN here: it would leave the empty mount points of the build's volumes in the image.
FROM ${BASE}
ARG VERSION=unknown
ARG REVISION=unknown
ARG SOURCE=unknown
LABEL org.opencontainers.image.title="bids_petsynth" \
      org.opencontainers.image.description="BIDS App: synthetic brain PET from a T1w MRI and blood biomarkers. Research only; not a medical device." \
      org.opencontainers.image.licenses="Apache-2.0 AND CC-BY-SA-3.0" \
      org.opencontainers.image.source="${SOURCE}" \
      org.opencontainers.image.version="${VERSION}" \
      org.opencontainers.image.revision="${REVISION}"
COPY --from=build /opt/petsynth /opt/petsynth
COPY --from=templates /opt/templateflow /opt/templateflow
COPY --from=templates /mountpoints /
# PYTHONNOUSERSITE: Apptainer binds the user's home, whose packages must not mix with these.
ENV PATH=/opt/petsynth/bin:$PATH \
    PYTHONNOUSERSITE=1 PYTHONDONTWRITEBYTECODE=1 PYTHONUNBUFFERED=1 \
    LANG=C.UTF-8 NO_ET=1 MPLBACKEND=Agg MPLCONFIGDIR=/tmp/matplotlib \
    TEMPLATEFLOW_HOME=/opt/templateflow TEMPLATEFLOW_AUTOUPDATE=0 \
    NVIDIA_VISIBLE_DEVICES=all NVIDIA_DRIVER_CAPABILITIES=compute,utility
# A container's first process ignores SIGTERM unless it handles it; Python handles SIGINT, and the app ends cleanly on it.
STOPSIGNAL SIGINT
ENTRYPOINT ["bids-petsynth"]
