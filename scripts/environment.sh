# Sourced by the other scripts: sets $root (the repository) and $PYTHON (an interpreter that can run it).
# An active environment that has the package is used as it is; otherwise .venv in the repository is made
# from setup.py under constraints.txt. A second run finds it ready.

root=$(CDPATH='' cd -- "$(dirname -- "$0")/.." && pwd)

_has_package() { "$1" -I -c 'import sys, importlib.util as u; sys.exit(u.find_spec("sfp") is None or u.find_spec("mmseg") is None)' 2>/dev/null; }

_find_base_python() {
    for candidate in python3 python3.13 python3.12 python3.11 python3.10 python; do
        if "$candidate" -c 'import sys, venv, ensurepip; sys.exit(sys.version_info < (3, 10))' 2>/dev/null; then
            echo "$candidate"
            return 0
        fi
    done
    echo "error: no Python 3.10 or newer with venv and pip was found; install one (Debian: apt-get install python3-venv)." >&2
    return 1
}

_make_environment() {
    stamp="$root/.venv/installed-from"
    wanted=$(cat "$root/setup.py" "$root/constraints.txt" | cksum)
    if [ -x "$root/.venv/bin/python" ] && [ "$(cat "$stamp" 2>/dev/null)" = "$wanted" ]; then
        return 0
    fi
    base=$(_find_base_python) || return 1
    echo "Setting up $root/.venv (once; a few minutes and about 6.5 GB, most of it PyTorch) ..." >&2
    [ -x "$root/.venv/bin/python" ] || "$base" -m venv "$root/.venv" || return 1
    if ! "$root/.venv/bin/python" -m pip install --quiet --disable-pip-version-check -c "$root/constraints.txt" -e "$root[dev]" >&2; then
        echo "error: installing into $root/.venv failed; the lines above say why. Run the same command again to go on." >&2
        return 1
    fi
    echo "$wanted" >"$stamp"
}

if command -v python >/dev/null 2>&1 && _has_package python; then
    PYTHON=python
elif command -v python3 >/dev/null 2>&1 && _has_package python3; then
    PYTHON=python3
else
    _make_environment || exit 1
    PYTHON="$root/.venv/bin/python"
fi
PYTHONPATH="$root${PYTHONPATH:+:$PYTHONPATH}" # this checkout's code, whatever else is installed
export PYTHONPATH
