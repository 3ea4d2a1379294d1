#!/usr/bin/env bash
# Runs LMCache's own tests of its MaruBackend and ours against a wheel, on a host without a GPU:
#
#     python/tests/lmcache.sh WHEEL [CACHE]
#
# WHEEL is what python/build-wheel made. CACHE is where environments are kept, of 2 GB each and made in about two minutes;
# ~/.cache/maru-tests unless given. LMCACHE_VERSION chooses LMCache, 0.5.6 unless set; PYTHON the interpreter.
set -euo pipefail

wheel=$(realpath "${1:?the wheel to test}")
cache=$(realpath -m "${2:-$HOME/.cache/maru-tests}")
version=${LMCACHE_VERSION:-0.5.6}
python=${PYTHON:-python3}
here=$(cd "$(dirname "$0")" && pwd)
export LMCACHE_TRACK_USAGE=false PIP_DISABLE_PIP_VERSION_CHECK=1

key=$({ "$python" --version; cat "$here"/lmcache/{requirements.txt,cuda_stand_ins.py} "$0"; } | sha256sum | cut -c-12)
home=$cache/lmcache-$version-$key
env=$home/env
mkdir -p "$cache"
exec 9> "$home.lock"
flock 9

if [ ! -e "$home/complete" ]; then
    rm -rf "$home"
    "$python" -m venv "$env"
    if ! "$env/bin/pip" download -q --no-deps -d "$home/probe" sortedcontainers==2.4.0; then
        rm -rf "$home"
        echo "SKIPPED: no package registry within reach, so there is no LMCache to test with"
        exit 0
    fi
    echo "making an environment with LMCache $version in $home"
    "$env/bin/pip" install -q --no-deps -r "$here/lmcache/requirements.txt" "lmcache==$version"
    "$env/bin/python" "$here/lmcache/cuda_stand_ins.py"
    # LMCache's tests are in its source distribution only, which pip asks for its metadata; that takes torch, but no compiler.
    NO_CUDA_EXT=1 "$env/bin/pip" download -q --no-deps --no-binary lmcache --no-build-isolation -d "$home" "lmcache==$version"
    mkdir "$home/theirs"
    tar xzf "$home/lmcache-$version.tar.gz" -C "$home/theirs" --strip-components=1 "lmcache-$version/tests"
    rm -rf "$home/probe" "$home/lmcache-$version.tar.gz"
    touch "$home/complete"
fi

"$env/bin/pip" install -q --no-deps --force-reinstall "$wheel"
export PATH=$env/bin:$PATH

echo "LMCache $version: its own tests"
# Their conftest.py wants services that these tests don't.
(cd "$home/theirs" && python -m pytest -q -p no:cacheprovider --noconftest tests/v1/storage_backend/test_maru_backend.py)
echo "LMCache $version: our tests"
(cd "$here/.." && python -m pytest -q -p no:cacheprovider tests/lmcache)
