# shellcheck shell=bash disable=SC2154 # scratch, cache: set by scripts/nested
# Part of scripts/nested: Debian kernels, from the machine's own archive to a cache.
#
# A cache entry $cache/KIND is a directory with `release` (what uname -r will say),
# `packages` (what it was made of), `vmlinuz`, `modules/NN-name.ko` in loading order,
# and `checksums` of all that. Entries are built aside and renamed into place; who
# touches one holds $cache/KIND.lock. The age of $cache/KIND.checked says when the
# archive was last asked. Uses note, die, skip, require, slow, $cache and $scratch.

readonly keyring=/usr/share/keyrings/debian-archive-keyring.gpg

# sources SUITE...: sources.list lines for these suites, on the mirrors of the
# machine's own apt configuration (apt itself parses that, whatever its syntax).
sources() {
	local suite uri release
	for suite in "$@"; do
		# Debian's releases only: another distribution's mirror lacks the suites.
		release='(bullseye|bookworm|trixie|forky|sid|(old)*stable|testing|unstable)'
		case $suite in
		*-security) release+='-security' ;;
		*) release+='(-updates|-backports)?' ;;
		esac
		# shellcheck disable=SC2016 # apt substitutes these, not the shell
		apt-get indextargets --format '$(REPO_URI) $(RELEASE)' \
			'Created-By: Packages' | grep -v '^cdrom' |
			sed -nE "s/ $release\$//p" | sort -u | while read -r uri; do
			echo "deb [arch=amd64 signed-by=$keyring] $uri $suite main"
		done
	done
}

# ask SUITE...: downloads the indices of these suites into a private apt state that
# otherwise follows the machine's apt configuration (proxies and the like).
ask() {
	rm -rf "$scratch/apt"
	mkdir -p "$scratch"/apt/{lists/partial,archives/partial,parts}
	touch "$scratch/apt/status"
	cat >"$scratch/apt/conf" <<-END
		Dir::Etc::SourceList "$scratch/apt/sources.list";
		Dir::Etc::SourceParts "$scratch/apt/parts";
		Dir::State::Lists "$scratch/apt/lists";
		Dir::State::Status "$scratch/apt/status";
		Dir::Cache "$scratch/apt";
		APT::Architecture "amd64";
		APT::Sandbox::User "";
		Acquire::Retries "1";
		Acquire::http::Timeout "20";
		Acquire::https::Timeout "20";
		#clear APT::Update::Pre-Invoke;
		#clear APT::Update::Post-Invoke;
		#clear APT::Update::Post-Invoke-Success;
	END
	sources "$@" >"$scratch/apt/sources.list"
	[[ -s $scratch/apt/sources.list ]] || echo 'E: no Debian archive in apt sources'
	# May fail for one suite of several; the packages found are the judge.
	slow apt-get -q -c "$scratch/apt/conf" update || true
}

# newest_in VERSION SUITE...: writes name, size and hash of the packages that make
# the newest kernel whose release matches VERSION to $scratch/packages. False: none.
newest_in() {
	local version=$1 names release image binary modules wanted
	ask "${@:2}" >>"$scratch/apt.log" 2>&1
	names=$(apt-cache -c "$scratch/apt/conf" dumpavail | sed -nE \
		's/^Package: (linux-(image|binary|modules)-.*-cloud-amd64(-unsigned)?)$/\1/p')
	part() {
		grep -m 1 -xF -e "linux-$1-unsigned-$release" \
			-e "linux-$1-$release-unsigned" -e "linux-$1-$release" <<<"$names"
	}
	while read -r release; do
		image=$(part image) binary=$(part binary) modules=$(part modules)
		case ${binary:+binary}${modules:+modules} in
		binarymodules) wanted=("$binary" "$modules") ;; # split since 7.2
		'') wanted=("$image") ;;
		*) continue ;; # partly published: the next newest
		esac
		apt-get -c "$scratch/apt/conf" download --print-uris "${wanted[@]}" |
			cut -d ' ' -f 2- >"$scratch/packages"
		return
	done < <(sed -E 's/^linux-[a-z]+-(unsigned-)?//; s/-unsigned$//' <<<"$names" |
		grep "^$version" | sort -Vur)
	return 1
}

# newest KIND: newest_in, with what each kind of kernel means. The suites on the
# right are for the day when those on the left are gone from the mirrors.
newest() {
	rm -f "$scratch/apt.log"
	case $1 in
	stable) newest_in '6\.12\.' bookworm-security bookworm-backports ||
		newest_in '6\.12\.' trixie-security trixie ;;
	newest) newest_in '[0-9]' trixie-backports || newest_in '[0-9]' forky sid ;;
	esac
}

# download: fetches $scratch/packages. apt checks each against the signed index.
download() {
	local names
	mapfile -t names < <(cut -d _ -f 1 "$scratch/packages")
	note "fetching ${names[*]}"
	slow env -C "$scratch/apt" apt-get -q -c conf download "${names[@]}" \
		>>"$scratch/apt.log" 2>&1 && return
	! grep -i mismatch "$scratch/apt.log" >&2 || die "corrupt package, see above"
	echo 'E: the download failed' >>"$scratch/apt.log"
	return 1
}

# add_module NAME: copies a module of $scratch/unpacked to $entry/modules after those
# it depends on. The module itself names these (depmod runs only at installation);
# one that has no file is built into the kernel.
add_module() {
	local file copy dependency stem=${1//[-_]/[-_]}
	file=$(find "$scratch/unpacked" -name "$stem.ko*" -print -quit)
	[[ -n $file && -z $(find "$entry/modules" -name "*-$stem.ko") ]] || return 0
	copy=$scratch/$(basename "${file%.ko*}").ko
	case $file in
	*.xz) xz -dc "$file" >"$copy" ;;
	*.zst) zstd -qdc "$file" >"$copy" ;;
	*) cp "$file" "$copy" ;;
	esac
	for dependency in $(tr '\0' '\n' <"$copy" | sed -n 's/^depends=//p' | tr , ' '); do
		add_module "$dependency"
	done
	file=$(find "$entry/modules" -name '*.ko' | wc -l)
	mv "$copy" "$entry/modules/$(printf %02d "$file")-$(basename "$copy")"
}

checksums() { (cd "$1" && sha256sum release packages vmlinuz modules/*); }
intact() { [[ $(checksums "$1" 2>&1) == "$(cat "$1/checksums" 2>&1)" ]]; }

# make_entry KIND: turns the downloaded packages into the cache entry.
make_entry() {
	local entry deb vmlinuz unpacked=$scratch/unpacked
	entry=$(mktemp -d "$cache/$1.new.XXXXXX") # same file system: atomic rename
	mkdir "$entry/modules"
	for deb in "$scratch"/apt/*.deb; do
		slow dpkg -x "$deb" "$unpacked" || die "corrupt package ${deb##*/}"
	done
	vmlinuz=$(find "$unpacked" -type f -name 'vmlinuz*' -print -quit)
	add_module kvm-amd
	[[ -n $vmlinuz && -n $(find "$entry/modules" -name '*-kvm-amd.ko') ]] ||
		die "no vmlinuz or no kvm-amd.ko in $(cut -d ' ' -f 1 "$scratch/packages")"
	cp "$vmlinuz" "$entry/vmlinuz"
	cp "$scratch/packages" "$entry/packages"
	find "$unpacked" -type d -path '*/modules/*/kernel' -prune -printf '%h\n' |
		sed 's,.*/,,' >"$entry/release"
	checksums "$entry" >"$scratch/checksums"
	mv "$scratch/checksums" "$entry/checksums"
	rm -rf "${cache:?}/$1"
	mv -T "$entry" "$cache/$1"
	rm -rf "$unpacked"
}

# fetch KIND: leaves a private, verified copy of the kernel in $scratch/kernel.
# Not to be called where errexit is off.
fetch() {
	local lock why='' entry=$cache/$1
	exec {lock}>"$entry.lock"
	slow flock -w 600 "$lock" || die "another run has held $entry.lock for 10 minutes"
	rm -rf "$entry".new.* # of a run that was killed
	if [[ -e $entry ]] && ! intact "$entry"; then
		why="the cached $1 kernel is corrupt and cannot be fetched anew: "
		note "the cached $1 kernel is corrupt; fetching it anew"
		rm -rf "$entry"
	fi
	if [[ ! -d $entry || -z $(find "$entry.checked" -mmin -1440 2>/dev/null) ]]; then
		require xz:xz-utils zstd:zstd "$keyring:debian-archive-keyring"
		touch "$entry.checked" # also if it fails: not at every run offline
		if newest "$1" && { cmp -s "$scratch/packages" "$entry/packages" || download; }; then
			cmp -s "$scratch/packages" "$entry/packages" || make_entry "$1"
		elif [[ -d $entry ]]; then
			note "cannot look for a newer $1 kernel (offline?): using the cached one"
		else
			why+=$(grep -m 1 -E '^[EW]:' "$scratch/apt.log" || echo 'not in the archive')
			[[ $why != 'the cached'* ]] || die "$why"
			skip "no $1 kernel can be had: $why"
		fi
	fi
	rm -rf "$scratch/kernel"
	cp -r "$entry" "$scratch/kernel"
	exec {lock}>&-
	intact "$scratch/kernel" || die "the cache $cache cannot be read back"
	printf 'nested %s: Linux %s\n' "$1" "$(<"$scratch/kernel/release")"
}
