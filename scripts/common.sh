# shellcheck shell=bash
# SPDX-License-Identifier: MIT
# Sourced by scripts/demo and scripts/check: where things are, installing
# packages, configuring and building. Needs bash; changes no option of the
# caller's shell and defines only what is listed here:
#
#   SOURCE_DIR, BUILD_DIR     the checkout; where to build (may be given)
#   say, die                  a line on stderr; the same and exit 1
#   ensure_packages           install what is missing of commands and headers
#   ensure_build_packages     the same for what every build needs, and more
#   quietly                   run a command; show its output only if it fails
#   configure_and_build       bring BUILD_DIR up to date
#   kvm_problem               why no guest can run on this machine, if so
#   run_suite, print_totals   run tests and report; the sum over all suites
# (present and install are their helpers.)

SOURCE_DIR=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd -P)
BUILD_DIR=${BUILD_DIR:-$SOURCE_DIR/build}
case $BUILD_DIR in
  /*) ;;
  *) BUILD_DIR=$PWD/$BUILD_DIR ;;
esac

say() {
  echo "${0##*/}: $*" >&2
}

die() {
  say "$*"
  exit 1
}

# present THING: is it here? A name that ends in .h is a header.
present() {
  case $1 in
    *.h) [ -e "/usr/include/$1" ] ;;
    *) command -v "$1" >/dev/null 2>&1 ;;
  esac
}

# install PACKAGE...: by apt, as root or through sudo if that asks nothing.
install() {
  local as_root=()

  command -v apt-get >/dev/null 2>&1 ||
    die "missing, and this is no Debian; please install the likes of: $*"
  if [ "$(id -u)" -ne 0 ]; then
    if ! command -v sudo >/dev/null 2>&1 || ! sudo -n true 2>/dev/null; then
      say "packages are missing; please run this and start again:"
      echo "  sudo apt-get install --no-install-recommends -y $*" >&2
      exit 1
    fi
    as_root=(sudo -n)
  fi
  say "installing $*"
  as_root+=(env DEBIAN_FRONTEND=noninteractive apt-get -q)
  if ! "${as_root[@]}" install --no-install-recommends -y "$@" >&2; then
    # This machine updated its lists long ago, or never.
    if ! "${as_root[@]}" update >&2 ||
      ! "${as_root[@]}" install --no-install-recommends -y "$@" >&2; then
      die "apt-get could not install $*"
    fi
  fi
}

# ensure_packages THING[=PACKAGE]...: install the packages of the commands and
# headers that are not here. Without "=PACKAGE" it is called as the command.
ensure_packages() {
  local thing missing=()

  for thing in "$@"; do
    present "${thing%%=*}" || missing+=("${thing#*=}")
  done
  if [ "${#missing[@]}" -gt 0 ]; then
    install "${missing[@]}"
  fi
}

# ensure_build_packages [THING[=PACKAGE]...]: what every build needs, and these.
ensure_build_packages() {
  local compiler=${CC:-cc}

  ensure_packages "${compiler%% *}=gcc" stdio.h=libc6-dev meson ninja=ninja-build \
    pkg-config linux/kvm.h=linux-libc-dev libfdt.h=libfdt-dev "$@"
}

# quietly COMMAND...: its output only if it fails.
quietly() {
  local log

  log=$(mktemp) || exit 1
  if ! "$@" >"$log" 2>&1 </dev/null; then
    cat "$log" >&2
    rm -f "$log"
    die "failed: $*"
  fi
  rm -f "$log"
}

# configure_and_build [MESON_OPTION...]: bring BUILD_DIR up to date. What was
# configured before stays as it is, but for the options that are given.
configure_and_build() {
  local options=$BUILD_DIR/meson-private/options-given

  if ! mkdir -p "$BUILD_DIR" 2>/dev/null || ! [ -w "$BUILD_DIR" ]; then
    die "cannot write to $BUILD_DIR; choose another with BUILD_DIR=DIR"
  fi
  if [ ! -e "$BUILD_DIR/build.ninja" ]; then
    say "configuring in $BUILD_DIR"
    quietly meson setup "$@" "$BUILD_DIR" "$SOURCE_DIR"
    echo "$*" >"$options"
  elif [ $# -gt 0 ] && [ "$*" != "$(cat "$options" 2>/dev/null)" ]; then
    say "configuring $BUILD_DIR anew"
    quietly meson setup --reconfigure "$@" "$BUILD_DIR" "$SOURCE_DIR"
    echo "$*" >"$options"
  fi
  quietly ninja -C "$BUILD_DIR"
}

# kvm_problem: prints nothing where guests can run.
kvm_problem() {
  if ! [ -e /dev/kvm ]; then
    echo "this machine has no /dev/kvm"
  elif ! [ -r /dev/kvm ] || ! [ -w /dev/kvm ] || ! : 2>/dev/null <>/dev/kvm; then
    echo "/dev/kvm is not accessible to $(id -un)"
  fi
}

passed=0 failed=0 skipped=0

# run_suite SUITE [TEST...]: run a suite of BUILD_DIR's tests, or these of it, and
# report. False if one failed. Each has TIMEOUT_FACTOR times its time; TEST_RUNNER,
# words, goes before meson's own command.
run_suite() {
  local suite=$1 counts base report progress

  shift
  base=$BUILD_DIR/meson-logs/${0##*/}-$suite
  rm -f "$base.json"
  progress=$base.out
  if [ -t 2 ]; then
    progress=/dev/stderr
  fi
  # shellcheck disable=SC2086 # words
  ${TEST_RUNNER-} meson test -C "$BUILD_DIR" --no-rebuild --quiet \
    --suite "$suite" --timeout-multiplier "${TIMEOUT_FACTOR:-1}" \
    --logbase "${base##*/}" "$@" >"$progress" 2>&1 </dev/null || :
  if [ ! -s "$base.json" ] ||
    ! report=$("$SOURCE_DIR/scripts/test-results" "$suite" "$base.json"); then
    cat "$base.out" >&2 || :
    say "the tests of suite $suite could not be run"
    failed=$((failed + 1))
    return 1
  fi
  read -ra counts <<<"$report"
  passed=$((passed + counts[0]))
  failed=$((failed + counts[1]))
  skipped=$((skipped + counts[2]))
  tail -n +2 <<<"$report"
  [ "${counts[1]}" -eq 0 ]
}

# print_totals: the closing line.
print_totals() {
  echo "$passed passed, $failed failed, $skipped skipped"
}
