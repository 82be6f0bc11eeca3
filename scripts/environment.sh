# Sourced by the scripts beside it with $root set to the checkout. POSIX sh.
#
# make_environment run|dev   leaves a finished $root/.venv, and its interpreter in $python. What it takes is written in
#                            environment.py; this file only finds a Python to run that with.

# Another environment must not reach into this one, and a folder of the caller's must not shadow a package.
unset PYTHONPATH PYTHONHOME VIRTUAL_ENV
export PYTHONSAFEPATH=1

python=$root/.venv/bin/python

make_environment() {
    if "$python" -I -S "$root/scripts/environment.py" check "$1" 2>/dev/null; then
        return
    fi
    for candidate in python3.14 python3.13 python3.12 python3.11 python3; do
        # Run it, not only find it: a shim or a broken link has the name and no Python behind it.
        if "$candidate" -I -c 'import sys, venv; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then
            "$candidate" -I "$root/scripts/environment.py" make "$1" || exit
            return
        fi
    done
    say_what_to_install >&2
    exit 1
}

say_what_to_install() {
    echo "Hearthlink needs Python 3.11 or newer. Found in PATH: $(python3 --version 2>/dev/null || echo 'no python3'). Install one, for example:"
    if command -v apt-get >/dev/null; then
        echo "    sudo apt-get install python3        (Debian 12, Ubuntu 24.04 and newer; on Ubuntu 22.04 python3.11)"
    elif command -v dnf >/dev/null; then
        echo "    sudo dnf install python3.12"
    elif command -v apk >/dev/null; then
        echo "    sudo apk add python3"
    elif command -v pacman >/dev/null; then
        echo "    sudo pacman -S python"
    elif command -v zypper >/dev/null; then
        echo "    sudo zypper install python312"
    else
        echo "    brew install python@3.13        (or the installer of python.org)"
    fi
    echo "and start again."
}
