//! Gives the linker the image's layout; here and not in `.cargo/config.toml`, so that no other program gets it.

use std::path::Path;

/// What every image is linked with.
const ARGUMENTS: [&str; 9] = [
    // Toolchains differ in their default linker; with one linker one layout is tested.
    "-fuse-ld=bfd",
    "-nostdlib",
    "-nostartfiles",
    "-static",
    "-no-pie",
    "-Wl,-z,max-page-size=4096",
    "-Wl,-z,noexecstack",
    "-Wl,--build-id=sha1",
    "-Wl,--gc-sections",
];

fn main() {
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("../linker.ld");
    println!("cargo:rerun-if-changed={}", script.display());
    for argument in ARGUMENTS {
        println!("cargo:rustc-link-arg-bins={argument}");
    }
    println!("cargo:rustc-link-arg-bins=-Wl,-T,{}", script.display());
}
