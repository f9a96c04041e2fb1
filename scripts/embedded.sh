#!/bin/sh
# Trains the embedded model from nothing with the package's own commands, and puts it into the package.
# Interrupted, it goes on where it stopped. RUNS is the folder of the runs.
set -eu
RUNS=${RUNS:-runs/embedded}
ASSETS=src/genprop/assets/tiny
genprop=${GENPROP:-.venv/bin/genprop}

put() { # put RUN/PART NAME: a trained part becomes the embedded NAME
    mkdir -p "$ASSETS"
    rm -rf "${ASSETS:?}/$2"
    cp -r "$1" "$ASSETS/$2"
}

$genprop train --stage autoencoder --out "$RUNS/autoencoder" --resume
$genprop data encode procedural --base "$RUNS/autoencoder/base" --out "$RUNS/latents"
$genprop train --stage backbone --base "$RUNS/autoencoder/base" --data "$RUNS/latents" \
    --out "$RUNS/backbone" --resume
put "$RUNS/backbone/base" base
$genprop train --stage carry --base tiny-base --data "$RUNS/latents" --out "$RUNS/carry" --resume
$genprop train --stage teacher --base tiny-base --start "$RUNS/carry/teacher" --data "$RUNS/latents" \
    --out "$RUNS/teacher" --resume
put "$RUNS/teacher/teacher" teacher
$genprop distill --teacher tiny-teacher --data "$RUNS/latents" --out "$RUNS/student" --resume
put "$RUNS/student/student" student
$genprop distill --stage decoder --student "$RUNS/student/student" --data "$RUNS/latents" \
    --out "$RUNS/decoder" --resume
put "$RUNS/decoder/student" student
