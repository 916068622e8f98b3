# What the test bed takes from Debian: Xen, a kernel for dom0 and one for guests, and the programs of both initramfs.
# shellcheck shell=bash

readonly testbed_packages=(xen-system-amd64 xen-utils-common linux-image-amd64 linux-image-cloud-amd64 busybox-static bash util-linux)
readonly dom0_programs=(init-xenstore-domain xen-init-dom0 xenconsole xenconsoled xenstore-control xenstored xl libxl-save-helper lsevtchn)
readonly store_clients=(chmod exists list ls read rm watch write)
readonly dom0_modules=(xen-evtchn xen-gntdev xen-gntalloc xen-privcmd xenfs xen-blkback loop)
readonly guest_modules=(xen-blkfront)

# prepare_testbed CACHE: make CACHE/current, a directory with xen, dom0-kernel, guest-kernel, dom0.cpio, guest.cpio
# and packages.
# It is kept until Debian has newer packages or this file changes.
prepare_testbed() {
    local cache=$1
    mkdir -p "$cache"
    if ! fetch_testbed_packages "$cache"; then
        echo "the package index may be old: refreshing it"
        apt_as_root update
        rm -f "$cache/packages"
        fetch_testbed_packages "$cache"
    fi
    local key
    key=$(cat "$cache/packages" "${BASH_SOURCE[0]}" | sha256sum | cut -c1-16)
    if [[ $(cat "$cache/current/key" 2>/dev/null) != "$key" ]]; then
        echo "unpacking Xen and Linux into $cache"
        rm -rf "$cache/new"
        (build_parts "$cache" "$cache/new")
        cp "$cache/packages" "$cache/new/packages"
        echo "$key" >"$cache/new/key"
        rm -rf "$cache/current"
        mv "$cache/new" "$cache/current"
        remove_old_packages "$cache"
    fi
}

fetch_testbed_packages() {
    select_packages "$1/packages" "${testbed_packages[@]}" && download_packages "$1/packages" "$1/debs"
}

remove_old_packages() {
    local file
    for file in "$1"/debs/*.deb; do
        grep --quiet --line-regexp --fixed-strings "${file##*/}" "$1/packages" || rm "$file"
    done
}

build_parts() {
    local cache=$1 parts=$2 name kernel guest_kernel
    mkdir -p "$parts/root"
    while read -r name; do
        dpkg-deb --extract "$cache/debs/$name" "$parts/root"
    done <"$cache/packages"
    cd "$parts" || return
    guest_kernel=$(only_file root/boot/vmlinuz-*-cloud-amd64)
    mv "$guest_kernel" guest-kernel
    kernel=$(only_file root/boot/vmlinuz-*)
    unpack_kernel "$kernel" >dom0-kernel
    gzip -dc "$(only_file root/boot/xen-*.gz)" >xen
    build_guest_tree "${guest_kernel#root/boot/vmlinuz-}"
    build_dom0_tree "${kernel#root/boot/vmlinuz-}"
    pack_tree guest >guest.cpio
    pack_tree dom0 >dom0.cpio
    rm -rf root guest dom0
}

build_dom0_tree() {
    local release=$1 bin program
    bin=$(only_file root/usr/lib/xen-[0-9]*/bin)
    empty_tree dom0
    for program in "${dom0_programs[@]}"; do
        install -D -t "dom0/${bin#root/}" "$bin/$program"
        add_libraries dom0 "$bin/$program"
    done
    ln -s "/${bin#root/}" dom0/usr/lib/xen
    add_hotplug_scripts dom0
    # pthread_cancel opens it by name; no program lists it
    install -D -t dom0/lib/x86_64-linux-gnu root/lib/x86_64-linux-gnu/libgcc_s.so.1
    add_store_clients dom0
    add_modules dom0 "$release" "${dom0_modules[@]}"
}

build_guest_tree() {
    empty_tree guest
    add_store_clients guest
    add_modules guest "$1" "${guest_modules[@]}"
}

# Debian's scripts for a guest's devices, and what they need that busybox does not have.
add_hotplug_scripts() {
    mkdir -p "$1/etc/xen"
    cp -r root/etc/xen/scripts "$1/etc/xen/scripts"
    install -D -t "$1/bin" root/bin/bash root/usr/bin/flock
    add_libraries "$1" root/bin/bash
    add_libraries "$1" root/usr/bin/flock
}

empty_tree() {
    mkdir -p "$1"/{bin,dev,etc,proc,run,sbin,sys,tmp,usr/bin,var/lib/xen,var/log/xen}
    ln -s /run "$1/var/run"
    cp root/bin/busybox "$1/bin/busybox"
}

add_store_clients() {
    local tree=$1 client
    install -t "$tree/usr/bin" root/usr/bin/xenstore
    for client in "${store_clients[@]}"; do
        ln -s xenstore "$tree/usr/bin/xenstore-$client"
    done
    add_libraries "$tree" root/usr/bin/xenstore
}

add_modules() {
    local tree=$1 release=$2 module path
    shift 2
    for module in "$@"; do
        path=$(find "root/lib/modules/$release" -name "$module.ko")
        install -D -m 644 -t "$tree/lib/modules" "$path"
    done
}

# The loader of the unpacked libc resolves the libraries, so that none of this machine's own gets in.
add_libraries() {
    local tree=$1 program=$2 library paths
    paths=$(root/lib64/ld-linux-x86-64.so.2 --library-path root/lib/x86_64-linux-gnu:root/usr/lib/x86_64-linux-gnu --list "$program")
    while read -r library; do
        [[ $library == root/* ]] || { echo "$program needs $library, which is in none of the packages" >&2; return 1; }
        install -D -t "$tree/$(dirname "${library#root/}")" "$library"
    done < <(sed -n 's/^.* => \(.*\) (0x.*$/\1/p' <<<"$paths" | sed 's,^/lib64/ld-linux,root&,')
    install -D -t "$tree/lib64" root/lib64/ld-linux-x86-64.so.2
}

# The ELF file inside a bzImage: Xen would need half the boot time to decompress it under emulation.
unpack_kernel() {
    local image=$1 setup_sectors offset length
    setup_sectors=$(read_number "$image" 0x1f1 1)
    offset=$(((setup_sectors + 1) * 512 + $(read_number "$image" 0x248 4)))
    length=$(read_number "$image" 0x24c 4)
    # the last four bytes are the unpacked size, not part of the xz stream
    head -c "$((offset + length - 4))" "$image" | tail -c "$((length - 4))" | xz --decompress --single-stream
}

read_number() {
    od --address-radix=n --format="u$3" --skip-bytes="$(($2))" --read-bytes="$3" "$1" | tr -d ' '
}

only_file() {
    [[ $# == 1 && -e $1 ]] || { echo "expected one file, found: $*" >&2; return 1; }
    echo "$1"
}

# pack_tree DIRECTORY: a cpio archive as Linux unpacks it; not compressed, because unpacking is slow under emulation.
pack_tree() {
    (cd "$1" && find . -mindepth 1 -print0 | sort -z | cpio --null --create --format=newc --owner=0:0 --reproducible --quiet)
}
