# Debian's C xenstored, out of its package, for comparison: the program, its libraries, and the shim that stands for the hypervisor.
# shellcheck shell=bash
# Needs debian.sh, and install_commands cc=gcc.

readonly peer_package=xen-utils-4.17

# prepare_peer CACHE: leave `xenstored`, `lib` and `fake_xen.so` in CACHE/peer.
prepare_peer() {
    local cache=$1 name
    mkdir -p "$cache"
    select_packages "$cache/packages" "$peer_package"
    download_packages "$cache/packages" "$cache/debs"
    rm -rf "$cache/peer"
    mkdir -p "$cache/peer/lib"
    while read -r name; do
        [[ $name != libxen* && $name != "$peer_package"_* ]] || dpkg-deb --extract "$cache/debs/$name" "$cache/peer/root"
    done <"$cache/packages"
    cp --no-dereference "$cache"/peer/root/usr/lib/*/libxen*.so* "$cache/peer/lib"
    cp "$cache"/peer/root/usr/lib/xen-*/bin/xenstored "$cache/peer"
    cc -Wall -Wextra -Werror -O2 -shared -fPIC -o "$cache/peer/fake_xen.so" testbed/peer/fake_xen.c
}
