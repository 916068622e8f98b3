# The program that plays transcripts inside Xen, and the texts.
# shellcheck shell=bash
# Needs debian.sh.

# build_player PROJECT FILE: the program, without libraries of its own, because what it runs on has others than this machine.
build_player() {
    local project=$1 file=$2 target=x86_64-unknown-linux-gnu
    command -v cargo >/dev/null || { echo "there is no cargo; install stable Rust first (https://rustup.rs)" >&2; return 2; }
    install_commands cc=gcc strip=binutils
    (cd "$project" && RUSTFLAGS="-C target-feature=+crt-static" cargo build --quiet --locked --release --package host --example in-xen \
        --target "$target" --target-dir target/in-xen)
    strip -o "$file" "$project/target/in-xen/$target/release/examples/in-xen"
}
