# Shared by the scripts of this folder: where the cache is, where Debian's packages come from, an apt of our own.
# The host's package lists, caches and configuration are only read.
set -euo pipefail
export PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin:$PATH LC_ALL=C.UTF-8
images=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
cache=${UBD_CACHE:-${XDG_CACHE_HOME:-$HOME/.cache}/ubd}/lab
mkdir -p "$cache"

say() { echo "lab: $*" >&2; }
die() {
    echo "lab: $*" >&2
    exit 1
}

# host_codename: the Debian release of this host. The guest gets the same one, so that what is built here runs there.
host_codename() {
    (
        . /etc/os-release
        [ "${ID:-}" = debian ] || die "this host is ${PRETTY_NAME:-unknown}; the lab needs Debian, whose packages it boots (a Debian container will do)"
        echo "$VERSION_CODENAME"
    )
}

# guest_codename: the release of the guest's programs: the host's own, or $UBD_LAB_RELEASE, which must not be older.
guest_codename() { echo "${UBD_LAB_RELEASE:-$(host_codename)}"; }

# mirror: the address of the archive that serves this host's own release, as the system's apt sources name it.
mirror() { "$images/system-mirror.py" "$(host_codename)"; }

# with_suites NAME LINE...: makes apt_get and apt_cache work on a private configuration, kept in the cache as apt-NAME,
# whose only sources are the given "TYPE SUITE" lines on the system's own mirror. Signatures are checked as usual.
with_suites() {
    local name=$1 site line
    shift
    site=$(mirror)
    apt_home=$cache/apt-$name
    mkdir -p "$apt_home"/{lists/partial,cache/archives/partial,etc}
    # The host's hooks clean the host's own caches after an update: not for us.
    printf '#clear %s;\n' APT::Update::Pre-Invoke APT::Update::Post-Invoke APT::Update::Post-Invoke-Success DPkg::Post-Invoke >"$apt_home/etc/apt.conf"
    for line in "$@"; do
        echo "${line%% *} [signed-by=/usr/share/keyrings/debian-archive-keyring.gpg] $site ${line#* } main"
    done >"$apt_home/etc/sources.list"
    apt_options=(-c "$apt_home/etc/apt.conf"
        -o Dir::Etc::sourcelist="$apt_home/etc/sources.list" -o Dir::Etc::sourceparts=/dev/null
        -o Dir::Etc::preferences=/dev/null -o Dir::Etc::preferencesparts=/dev/null
        -o Dir::State::lists="$apt_home/lists" -o Dir::State::status=/dev/null -o Dir::Cache="$apt_home/cache"
        -o APT::Architecture=amd64 -o APT::Architectures=amd64 -o APT::Sandbox::User=root
        -o Acquire::Languages=none -o Acquire::Retries=3)
    apt_get update >"$apt_home/log" 2>&1 || {
        cat "$apt_home/log" >&2
        die "cannot read the package lists of $*; is the network there?"
    }
    ! grep -E '^(W|E): ' "$apt_home/log" >&2 || die "apt complained about the package lists of $* (above)"
}
apt_get() { apt-get "${apt_options[@]}" "$@"; }
apt_cache() { apt-cache "${apt_options[@]}" "$@"; }

# cached KIND FILE...: sets `home` to the cache's folder for what those files (the recipe) make. Another recipe, of another
# work tree or an older one, has a folder of its own, so they never take each other's away; what nobody used for two weeks
# goes. When it is there already, prints it and ends the script: nothing to do, no network needed.
cached() {
    local kind=$1 old
    shift
    home=$cache/$kind-$(cat "$@" | sha256sum | cut -c1-12)
    if [ -d "$home" ] && [ -z "${refresh:-}" ]; then
        touch "$home"
        echo "$home"
        exit 0
    fi
    find "$cache" -maxdepth 1 -name "$kind-*" -mtime +14 -exec rm -rf {} +
    work=$(mktemp -d "$cache/work.XXXXXX")
    trap 'rm -rf "$work"' EXIT
    mkdir "$work/result"
}

# keep: what lies in $work/result becomes the cache's, and its folder is printed.
keep() {
    rm -rf "$home"
    mv "$work/result" "$home"
    echo "$home"
}

# pack FOLDER: the folder as a cpio archive for an initramfs, everything owned by root, on standard output.
pack() { (cd "$1" && find . -mindepth 1 -print0 | LC_ALL=C sort -z | cpio --null --create --format=newc --owner=0:0 --quiet); }
