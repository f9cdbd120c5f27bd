#!/usr/bin/env bash
# Installs a build into a scratch directory and builds the examples against
# that as a stranger would: with pkg-config, once with the static library and
# once with the shared one. Then runs them.
#
#   installed.sh BUILD-DIR [COMPILER [FLAG...]] -- EXAMPLE.c...
set -euo pipefail

build=$1
shift
compiler=()
while [[ $# -gt 0 && $1 != -- ]]; do
  compiler+=("$1")
  shift
done
shift
((${#compiler[@]})) || compiler=(cc)
if ! command -v pkg-config >/dev/null; then
  echo "skipped: no pkg-config"
  exit 77
fi

root=$(mktemp -d)
trap 'rm -rf "$root"' EXIT
meson install --no-rebuild --quiet -C "$build" --destdir "$root"

# The library lies in $root, where pkg-config would not look by itself; a
# prefix of /usr would be left out of its answers as known to the compiler.
pc=$(find "$root" -name gpas.pc)
export PKG_CONFIG_LIBDIR=${pc%/*} PKG_CONFIG_SYSROOT_DIR=$root
export PKG_CONFIG_ALLOW_SYSTEM_CFLAGS=1 PKG_CONFIG_ALLOW_SYSTEM_LIBS=1
libdir=${PKG_CONFIG_LIBDIR%/pkgconfig}
read -ra cflags <<<"$(pkg-config --cflags gpas)"
# With both at hand -lgpas takes the shared one; this names the other.
read -ra shared <<<"$(pkg-config --libs gpas)"
read -ra static <<<"$(pkg-config --libs --static gpas)"
static=("${static[@]/#-lgpas/-l:libgpas.a}")

# check SOURCE KIND LIBRARY...: compile, see what it is linked to, run.
check() {
  local source=$1 kind=$2 program linked status=0
  shift 2
  program=$root/$(basename "$source" .c)-$kind
  echo "== ${program##*/}"
  "${compiler[@]}" -Wall -Werror "$source" "${cflags[@]}" "$@" -o "$program"
  linked=static
  # Not a pipe to grep -q, whose early end would be an error of ldd's.
  if [[ $(ldd "$program") == *libgpas* ]]; then
    linked=shared
  fi
  if [[ $linked != "$kind" ]]; then
    echo "it is linked to the $linked library"
    exit 1
  fi
  LD_LIBRARY_PATH=$libdir "$program" || status=$?
  if ((status != 0 && status != 77)); then
    echo "exit status $status"
    exit 1
  fi
}

for source in "$@"; do
  check "$source" shared "${shared[@]}"
  check "$source" static "${static[@]}"
done
