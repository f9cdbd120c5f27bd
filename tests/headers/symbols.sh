#!/bin/sh
# SPDX-License-Identifier: MIT
# Exported symbols of the shared library $1 all start with gpas_, and each one
# that the headers declare is there.
set -eu

exported=$(nm -D --defined-only "$1" | awk '{ print $3 }' | sort)
strangers=$(printf '%s\n' "$exported" | grep -v '^gpas_' |
	grep -v -E '^(__asan_|__tsan_|__ubsan_|__odr_asan|__gcov_)' |
	grep -v -x mangle_path || true) # gcc's sanitizers and coverage
if [ -n "$strangers" ]; then
	echo "exported without the prefix:" >&2
	echo "$strangers" >&2
	exit 1
fi

include=$(dirname "$0")/../../include/gpas
declared=$(cat "$include"/*.h | tr '\n' ' ' |
	grep -o 'GPAS_API [^;(]*(' | grep -o 'gpas_[a-z0-9_]* *($' |
	tr -d ' (' | sort -u)
[ -n "$declared" ]
for name in $declared; do
	if ! printf '%s\n' "$exported" | grep -q -x "$name"; then
		echo "declared but not exported: $name" >&2
		exit 1
	fi
done
echo "$(printf '%s\n' "$exported" | wc -l) symbols, all declared ones exported"
