//! The targets. Each takes any bytes and panics if a promise is broken.

mod boot;
mod client;
mod frames;
mod numbers;
mod path;
mod permissions;
mod request;
mod ring;
mod stream;

/// Something to feed.
pub(crate) struct Target {
    pub(crate) name: &'static str,
    pub(crate) about: &'static str,
    run: fn(&[u8]),
}

/// All of them.
pub(crate) const ALL: &[Target] = &[
    Target {
        name: "ring",
        about: "a page that gives anything at each load",
        run: ring::run,
    },
    Target {
        name: "frames",
        about: "bytes in pieces of any size mean what they mean at once",
        run: frames::run,
    },
    Target {
        name: "request",
        about: "any requests of three domains: one reply each, accounts in order, the same on both storages",
        run: request::run,
    },
    Target {
        name: "path",
        about: "paths are taken and refused as twenty lines say",
        run: path::run,
    },
    Target {
        name: "permissions",
        about: "lists of permissions are taken, shown and applied as a few lines say",
        run: permissions::run,
    },
    Target {
        name: "numbers",
        about: "only plain decimal numbers in range are numbers",
        run: numbers::run,
    },
    Target {
        name: "stream",
        about: "a state stream, damaged or not: refused, or a server in order",
        run: stream::run,
    },
    Target {
        name: "start_info",
        about: "the boot loader's tables, broken in any way",
        run: boot::start_info,
    },
    Target {
        name: "command_line",
        about: "any command line",
        run: boot::command_line,
    },
];

impl Target {
    pub(crate) fn run(&self, input: &[u8]) {
        (self.run)(input);
    }
}

/// The target with this name.
pub(crate) fn find(name: &str) -> Option<&'static Target> {
    ALL.iter().find(|target| target.name == name)
}
