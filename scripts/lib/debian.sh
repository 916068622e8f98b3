# Debian's packages for the scripts: installs commands, and unpacks packages into a directory without installing them.
# shellcheck shell=bash

# install_commands COMMAND=PACKAGE...: install each package whose command is not there yet.
install_commands() {
    local entry missing=()
    for entry in "$@"; do
        command -v "${entry%%=*}" >/dev/null || missing+=("${entry#*=}")
    done
    ((${#missing[@]})) || return 0
    echo "installing Debian packages: ${missing[*]}"
    apt-get -qq --simulate install "${missing[@]}" >/dev/null 2>&1 || apt_as_root update
    if ! apt_as_root install --yes --no-install-recommends "${missing[@]}" >/dev/null; then
        apt_as_root update
        apt_as_root install --yes --no-install-recommends "${missing[@]}" >/dev/null
    fi
}

# select_packages LIST SEED...: write to LIST the .deb names of the seeds and of the libraries that they need.
# A list of the same seeds made after the last `apt-get update` is kept, so that a warm run asks apt nothing.
select_packages() {
    local list=$1
    shift
    if [[ -s $list && $(cat "$list.seeds" 2>/dev/null) == "$*" && -z $(find /var/lib/apt/lists -type f -newer "$list" -print -quit 2>/dev/null) ]]; then
        return 0
    fi
    apt-get download --print-uris "$@" >/dev/null 2>&1 || apt_as_root update
    local packages
    mapfile -t packages < <(package_closure "$@")
    apt-get download --print-uris "${packages[@]}" | cut -d' ' -f2 | sort >"$list.new"
    mv "$list.new" "$list"
    echo "$*" >"$list.seeds"
}

# download_packages LIST STORE: bring every .deb of LIST into STORE, except those already there.
# Fails when the mirror has none of that name any more, which is what an old package index leads to.
download_packages() {
    local list=$1 store=$2 name missing=()
    mkdir -p "$store"
    while read -r name; do
        [[ -s $store/$name ]] || missing+=("${name%%_*}")
    done <"$list"
    ((${#missing[@]})) || return 0
    echo "downloading ${#missing[@]} Debian packages"
    local partial status=0
    partial=$(mktemp -d "$store/partial.XXXXXX")
    (cd "$partial" && apt-get -qq -o APT::Sandbox::User=root download "${missing[@]}") || status=$?
    ((status)) || mv "$partial"/*.deb "$store"
    rm -rf "$partial"
    return "$status"
}

# The seeds' programs and the libraries under them; what only an installed system needs (python, udev, ...) is left out.
package_closure() {
    local graph
    graph=$(apt-cache depends --recurse --no-recommends --no-suggests --no-conflicts --no-breaks --no-replaces --no-enhances "$@")
    awk -v seeds="$*" '
        /^[a-z]/          { package = $1 }
        /^ [ |](Pre)?Depends: / { needs[package] = needs[package] " " $2 }
        END {
            count = split(seeds, queue, " ")
            for (i = 1; i <= count; i++) known[queue[i]] = 1
            for (i = 1; i <= count; i++) {
                wanted = split(needs[queue[i]], names, " ")
                for (n = 1; n <= wanted; n++) {
                    name = names[n]
                    if (name in known || name !~ /^(lib|zlib|linux-image-|xen-hypervisor-[0-9]|xen-utils-|xenstore-utils)/) continue
                    known[name] = 1
                    queue[++count] = name
                }
            }
            for (i = 1; i <= count; i++) print queue[i]
        }' <<<"$graph"
}

apt_as_root() {
    local sudo=()
    ((EUID == 0)) || sudo=(sudo)
    DEBIAN_FRONTEND=noninteractive "${sudo[@]}" apt-get -qq -o DPkg::Lock::Timeout=300 "$@"
}
