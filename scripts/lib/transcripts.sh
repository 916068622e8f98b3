# Programs of ours that run inside Xen: the one that plays transcripts, the administrator's tool, the daemon.
# shellcheck shell=bash
# Needs debian.sh.

# build_player PROJECT FILE: the player.
build_player() { build_static "$1" --example in-xen && cp "$built/examples/in-xen" "$2"; }

# build_programs PROJECT DIRECTORY: the tool and the daemon.
build_programs() { build_static "$1" --bin xs --bin ferrostored && cp "$built/xs" "$built/ferrostored" "$2"; }

# build_static PROJECT OPTION...: programs without libraries of their own, because what they run on has others than this machine.
build_static() {
    local project=$1 target=x86_64-unknown-linux-gnu
    built=$project/target/in-xen/$target/release
    command -v cargo >/dev/null || { echo "there is no cargo; install stable Rust first (https://rustup.rs)" >&2; return 2; }
    install_commands cc=gcc
    (cd "$project" && RUSTFLAGS="-C target-feature=+crt-static -C strip=symbols" cargo build --quiet --locked --release --package host "${@:2}" \
        --target "$target" --target-dir target/in-xen)
}
