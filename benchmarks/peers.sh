#!/bin/sh
# Makes the environments of the projects that the benchmarks compare with, each with its own pinned versions, in .peers/
# beside the repository's files or in $TINYVERSE_PEERS. Run it as often as you like: what is there stays. They want
# 3 GB of disk; without them the benchmarks run and leave the peers out.
#
#     benchmarks/peers.sh [sb3] [sample-factory] [reverb]       all three if none is named
#
# reverb has wheels for Python 3.11 at most; PYTHON=python3.11 chooses the interpreter.
set -eu

cd "$(dirname "$0")/.."
folder=${TINYVERSE_PEERS:-$PWD/.peers}

make_one() { # NAME PACKAGE...
    name=$1
    shift
    if [ -e "$folder/$name/ready" ]; then
        echo "$name is there"
        return
    fi
    echo "==> $name"
    "${PYTHON:-python3}" -m venv "$folder/$name"
    # torch by itself and first, so that the small CPU build is taken where there is one
    [ "$name" = reverb ] || "$folder/$name/bin/pip" install --quiet --disable-pip-version-check torch==2.13.0
    "$folder/$name/bin/pip" install --quiet --disable-pip-version-check "$@"
    touch "$folder/$name/ready"
}

[ $# -gt 0 ] || set -- sb3 sample-factory reverb
for peer in "$@"; do
    case $peer in
    sb3) make_one sb3 stable_baselines3==2.9.2 gymnasium==1.4.0 numpy==2.4.6 ale-py==0.12.1 \
        opencv-python-headless==5.0.0.93 mujoco==3.17.0 packaging ;;
    sample-factory) make_one sample-factory sample-factory==2.1.1 gymnasium==0.29.1 numpy==1.26.4 ale-py==0.10.1 \
        opencv-python==4.11.0.86 ;;
    reverb) make_one reverb dm-reverb==0.14.0 tensorflow==2.15.1 numpy==1.26.4 ;;
    *)
        echo "there is no peer $peer; there are sb3, sample-factory and reverb" >&2
        exit 2
        ;;
    esac
done
