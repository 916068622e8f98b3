//! What the boot loader told us, checked: command line, memory map, modules, and where the image lies.
//!
//! Parsing reads physical memory through a trait, so that it is tested on the host with broken tables.

use core::fmt;

use crate::hypervisor::ranges::{AddressRange, MapEntry};

/// Longest command line in bytes, without its NUL. Xen's tools write at most 511.
pub const COMMAND_LINE_MAX: usize = 1023;
/// Most boot modules that are taken.
pub const MODULES_MAX: usize = 8;
/// Most entries of a boot loader's memory map.
pub const MEMORY_MAP_MAX: usize = 128;

/// Everything that boot hands to the kernel.
#[derive(Clone, Debug)]
pub struct BootInfo {
    /// The command line; bytes that are not printable ASCII have become `?`.
    pub command_line: heapless::String<COMMAND_LINE_MAX>,
    /// The boot loader's memory map, unsorted and unchecked; empty if it gave none (Xen's tools do not).
    pub memory_map: heapless::Vec<MapEntry, MEMORY_MAP_MAX>,
    /// Modules; they do not overlap the image and stay out of the heap.
    pub modules: heapless::Vec<AddressRange, MODULES_MAX>,
    /// The image itself.
    pub image: ImageLayout,
}

/// Where the linker put the image. Physical and virtual addresses are equal.
#[derive(Clone, Copy, Debug)]
pub struct ImageLayout {
    /// Read-only data, the lowest part.
    pub rodata: AddressRange,
    /// Instructions.
    pub text: AddressRange,
    /// Written while starting, read-only afterwards.
    pub sealed: AddressRange,
    /// Data, zeroed data and stacks, the highest part.
    pub data: AddressRange,
    /// The part of it that keeps what the sealed part and the data began with: read-only after the first start.
    pub kept: AddressRange,
    /// Where a later start of the domain enters it.
    pub restart_entry: u64,
    /// The page below the main stack, to be unmapped.
    pub stack_guard: u64,
    /// The linker's build id, by which a reported address finds its source line.
    pub build_id: &'static [u8],
}

impl ImageLayout {
    /// All of it.
    #[must_use]
    pub const fn whole(&self) -> AddressRange {
        AddressRange {
            start: self.rodata.start,
            end: self.data.end,
        }
    }
}

/// Physical memory as the boot page tables show it.
pub trait PhysicalMemory {
    /// Fills `into` from `address`; `None` if any of it cannot be read.
    fn read(&self, address: u64, into: &mut [u8]) -> Option<()>;
}

/// Reads `hvm_start_info` at `address`, which PVH entry found in `ebx` (xen-abi.md section 1, `arch-x86/hvm/start_info.h`).
///
/// # Errors
/// A sentence that names the broken field.
pub fn read_start_info(
    memory: &impl PhysicalMemory,
    address: u64,
    image: ImageLayout,
) -> Result<BootInfo, StartInfoError> {
    let info: Fields<START_INFO_SIZE> = fetch(memory, "start_info", address)?;
    let (magic, version) = (info.u32_at(0), info.u32_at(4));
    if magic != MAGIC {
        return Err(StartInfoError::Magic { address, magic });
    }
    if version > VERSION_MAX {
        return Err(StartInfoError::Version { version });
    }
    let has_map = version >= FIRST_VERSION_WITH_MAP;
    let map_entries = if has_map { info.u32_at(48) } else { 0 };
    Ok(BootInfo {
        command_line: read_command_line(memory, info.u64_at(24))?,
        memory_map: read_memory_map(memory, info.u64_at(40), map_entries)?,
        modules: read_modules(memory, info.u64_at(16), info.u32_at(12), image.whole())?,
        image,
    })
}

/// `XEN_HVM_START_MAGIC_VALUE`.
const MAGIC: u32 = 0x336e_c578;
/// Versions only add fields, so a later one is fine; one past this is no version but garbage.
const VERSION_MAX: u32 = 255;
const FIRST_VERSION_WITH_MAP: u32 = 1;
const START_INFO_SIZE: usize = 56;
const MODULE_SIZE: usize = 32;
const MAP_ENTRY_SIZE: usize = 24;

fn read_command_line(
    memory: &impl PhysicalMemory,
    address: u64,
) -> Result<heapless::String<COMMAND_LINE_MAX>, StartInfoError> {
    let mut line = heapless::String::new();
    if address == 0 {
        return Ok(line);
    }
    for offset in 0.. {
        let [byte]: [u8; 1] =
            fetch::<1>(memory, "the command line", address.saturating_add(offset))?.0;
        if byte == 0 {
            break;
        }
        let printable = byte == b' ' || byte.is_ascii_graphic();
        let letter = if printable { char::from(byte) } else { '?' };
        if line.push(letter).is_err() {
            return Err(StartInfoError::CommandLineEndless { address });
        }
    }
    Ok(line)
}

fn read_modules(
    memory: &impl PhysicalMemory,
    address: u64,
    count: u32,
    image: AddressRange,
) -> Result<heapless::Vec<AddressRange, MODULES_MAX>, StartInfoError> {
    let mut modules = heapless::Vec::new();
    for index in 0..count {
        let entry: Fields<MODULE_SIZE> = fetch(
            memory,
            "the module list",
            element(address, MODULE_SIZE, index),
        )?;
        let (start, size) = (entry.u64_at(0), entry.u64_at(8));
        let module = AddressRange::of_size(start, size)
            .filter(|module| !module.overlaps(image))
            .ok_or(StartInfoError::Module { index, start, size })?;
        if modules.push(module).is_err() {
            return Err(StartInfoError::TooMany {
                what: "modules",
                count,
                most: MODULES_MAX,
            });
        }
    }
    Ok(modules)
}

fn read_memory_map(
    memory: &impl PhysicalMemory,
    address: u64,
    count: u32,
) -> Result<heapless::Vec<MapEntry, MEMORY_MAP_MAX>, StartInfoError> {
    let mut map = heapless::Vec::new();
    for index in 0..count {
        let entry: Fields<MAP_ENTRY_SIZE> = fetch(
            memory,
            "the memory map",
            element(address, MAP_ENTRY_SIZE, index),
        )?;
        let (start, size, kind) = (entry.u64_at(0), entry.u64_at(8), entry.u32_at(16));
        let entry = MapEntry::new(start, size, kind).ok_or(StartInfoError::MapEntry {
            index,
            start,
            size,
        })?;
        if map.push(entry).is_err() {
            return Err(StartInfoError::TooMany {
                what: "memory map entries",
                count,
                most: MEMORY_MAP_MAX,
            });
        }
    }
    Ok(map)
}

/// Where element `index` of a table lies; an absurd table ends past all memory, where reading fails.
fn element(table: u64, size: usize, index: u32) -> u64 {
    table.saturating_add((size as u64).saturating_mul(u64::from(index)))
}

fn fetch<const SIZE: usize>(
    memory: &impl PhysicalMemory,
    what: &'static str,
    address: u64,
) -> Result<Fields<SIZE>, StartInfoError> {
    let mut bytes = [0; SIZE];
    memory
        .read(address, &mut bytes)
        .ok_or(StartInfoError::Unreadable { what, address })?;
    Ok(Fields(bytes))
}

/// A little-endian structure; a field outside reads as 0.
struct Fields<const SIZE: usize>([u8; SIZE]);

impl<const SIZE: usize> Fields<SIZE> {
    fn u32_at(&self, offset: usize) -> u32 {
        self.at(offset).map_or(0, u32::from_le_bytes)
    }

    fn u64_at(&self, offset: usize) -> u64 {
        self.at(offset).map_or(0, u64::from_le_bytes)
    }

    fn at<const WIDTH: usize>(&self, offset: usize) -> Option<[u8; WIDTH]> {
        self.0.get(offset..)?.get(..WIDTH)?.try_into().ok()
    }
}

/// Why the boot loader's tables were refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StartInfoError {
    /// A table lies where no memory is.
    Unreadable {
        /// Which one.
        what: &'static str,
        /// Where it should be.
        address: u64,
    },
    /// Not a start_info.
    Magic {
        /// Where it should be.
        address: u64,
        /// What is there.
        magic: u32,
    },
    /// A version that cannot be.
    Version {
        /// The number.
        version: u32,
    },
    /// No NUL within [`COMMAND_LINE_MAX`] bytes.
    CommandLineEndless {
        /// Where it begins.
        address: u64,
    },
    /// More elements than anyone needs.
    TooMany {
        /// Of what.
        what: &'static str,
        /// How many.
        count: u32,
        /// How many are taken.
        most: usize,
    },
    /// A module lies over the image or outside the address space.
    Module {
        /// Which one.
        index: u32,
        /// Where.
        start: u64,
        /// How long.
        size: u64,
    },
    /// A piece of the memory map lies outside the address space.
    MapEntry {
        /// Which one.
        index: u32,
        /// Where.
        start: u64,
        /// How long.
        size: u64,
    },
}

impl fmt::Display for StartInfoError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("broken start_info: ")?;
        match *self {
            Self::Unreadable { what, address } => {
                write!(f, "{what} at {address:#x} cannot be read")
            }
            Self::Magic { address, magic } => {
                write!(
                    f,
                    "at {address:#x} is {magic:#x} where {MAGIC:#x} should be; this image boots by PVH"
                )
            }
            Self::Version { version } => write!(f, "version {version} is not credible"),
            Self::CommandLineEndless { address } => write!(
                f,
                "the command line at {address:#x} does not end within {COMMAND_LINE_MAX} bytes"
            ),
            Self::TooMany { what, count, most } => {
                write!(f, "{count} {what}, at most {most} are taken")
            }
            Self::Module { index, start, size } => write!(
                f,
                "module {index} ({size:#x} bytes at {start:#x}) overlaps the image or lies outside memory"
            ),
            Self::MapEntry { index, start, size } => {
                write!(
                    f,
                    "memory map entry {index} ({size:#x} bytes at {start:#x}) lies outside memory"
                )
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const START_INFO: usize = 0x1000;
    const COMMAND_LINE: usize = 0x2000;
    const MODULES: usize = 0x3000;
    const MAP: usize = 0x4000;
    const IMAGE: ImageLayout = ImageLayout {
        rodata: AddressRange {
            start: 0x10_0000,
            end: 0x11_0000,
        },
        text: AddressRange {
            start: 0x11_0000,
            end: 0x12_0000,
        },
        sealed: AddressRange {
            start: 0x12_0000,
            end: 0x12_1000,
        },
        data: AddressRange {
            start: 0x12_1000,
            end: 0x14_0000,
        },
        kept: AddressRange {
            start: 0x12_2000,
            end: 0x12_4000,
        },
        restart_entry: 0x11_0000,
        stack_guard: 0x13_0000,
        build_id: &[],
    };

    /// 20 KiB of physical memory from address 0.
    struct Memory(Vec<u8>);

    impl PhysicalMemory for Memory {
        fn read(&self, address: u64, into: &mut [u8]) -> Option<()> {
            let start = usize::try_from(address).ok()?;
            let bytes = self.0.get(start..start.checked_add(into.len())?)?;
            into.copy_from_slice(bytes);
            Some(())
        }
    }

    impl Memory {
        /// What init-xenstore-domain leaves: no map, no module, `--event 14`.
        fn usual() -> Self {
            let mut memory = Self(vec![0; 0x5000]);
            memory.put(START_INFO, &MAGIC.to_le_bytes());
            memory.put(START_INFO + 4, &1_u32.to_le_bytes());
            memory.put(START_INFO + 16, &(MODULES as u64).to_le_bytes());
            memory.put(START_INFO + 24, &(COMMAND_LINE as u64).to_le_bytes());
            memory.put(START_INFO + 40, &(MAP as u64).to_le_bytes());
            memory.put(COMMAND_LINE, b"--event 14\0");
            memory
        }

        fn put(&mut self, offset: usize, bytes: &[u8]) {
            self.0[offset..offset + bytes.len()].copy_from_slice(bytes);
        }

        fn put_module(&mut self, start: u64, size: u64) {
            self.put(START_INFO + 12, &1_u32.to_le_bytes());
            self.put(MODULES, &start.to_le_bytes());
            self.put(MODULES + 8, &size.to_le_bytes());
        }

        fn parse(&self) -> Result<BootInfo, StartInfoError> {
            read_start_info(self, START_INFO as u64, IMAGE)
        }
    }

    #[test]
    fn what_init_xenstore_domain_gives_is_read() {
        let boot = Memory::usual().parse().unwrap();
        assert_eq!(boot.command_line.as_str(), "--event 14");
        assert!(boot.memory_map.is_empty());
        assert!(boot.modules.is_empty());
    }

    #[test]
    fn a_map_and_a_module_are_read() {
        let mut memory = Memory::usual();
        memory.put_module(0x13_f000 + 0x1000, 14);
        memory.put(START_INFO + 48, &1_u32.to_le_bytes());
        memory.put(MAP + 8, &0x80_0000_u64.to_le_bytes());
        memory.put(MAP + 16, &1_u32.to_le_bytes());
        let boot = memory.parse().unwrap();
        assert_eq!(boot.modules.first().unwrap().size(), 14);
        assert_eq!(
            boot.memory_map.first(),
            Some(&MapEntry::new(0, 0x80_0000, 1).unwrap())
        );
    }

    #[test]
    fn version_0_has_no_map() {
        let mut memory = Memory::usual();
        memory.put(START_INFO + 4, &0_u32.to_le_bytes());
        memory.put(START_INFO + 48, &u32::MAX.to_le_bytes());
        assert!(memory.parse().unwrap().memory_map.is_empty());
    }

    #[test]
    fn wrong_magic_and_absurd_version_are_refused() {
        let mut memory = Memory::usual();
        memory.put(START_INFO + 4, &256_u32.to_le_bytes());
        assert_eq!(
            memory.parse().unwrap_err(),
            StartInfoError::Version { version: 256 }
        );
        memory.put(START_INFO, &[0xff; 4]);
        assert!(matches!(
            memory.parse(),
            Err(StartInfoError::Magic {
                magic: u32::MAX,
                ..
            })
        ));
    }

    #[test]
    fn an_endless_command_line_is_refused_and_strange_bytes_are_replaced() {
        let mut memory = Memory::usual();
        memory.put(COMMAND_LINE, b"a\x01\xff b\0");
        assert_eq!(memory.parse().unwrap().command_line.as_str(), "a?? b");
        memory.put(COMMAND_LINE, &[b'x'; COMMAND_LINE_MAX + 1]);
        assert!(matches!(
            memory.parse(),
            Err(StartInfoError::CommandLineEndless { .. })
        ));
        memory.put(COMMAND_LINE + COMMAND_LINE_MAX, &[0]);
        assert_eq!(memory.parse().unwrap().command_line.len(), COMMAND_LINE_MAX);
    }

    #[test]
    fn no_command_line_is_an_empty_one() {
        let mut memory = Memory::usual();
        memory.put(START_INFO + 24, &[0; 8]);
        assert_eq!(memory.parse().unwrap().command_line.as_str(), "");
    }

    #[test]
    fn pointers_to_nowhere_are_refused_by_name() {
        for (offset, name) in [
            (16, "the module list"),
            (24, "the command line"),
            (40, "the memory map"),
        ] {
            let mut memory = Memory::usual();
            memory.put(START_INFO + 12, &1_u32.to_le_bytes());
            memory.put(START_INFO + 48, &1_u32.to_le_bytes());
            memory.put(START_INFO + offset, &u64::MAX.to_le_bytes());
            assert!(memory.parse().unwrap_err().to_string().contains(name));
        }
    }

    #[test]
    fn modules_over_the_image_or_past_the_end_are_refused() {
        for (start, size) in [(0x13_0000, 1), (u64::MAX, 2), (0, u64::MAX)] {
            let mut memory = Memory::usual();
            memory.put_module(start, size);
            assert!(matches!(
                memory.parse(),
                Err(StartInfoError::Module { index: 0, .. })
            ));
        }
    }

    #[test]
    fn absurd_counts_end() {
        let mut memory = Memory::usual();
        memory.put(START_INFO + 12, &u32::MAX.to_le_bytes());
        assert!(matches!(
            memory.parse(),
            Err(StartInfoError::TooMany {
                what: "modules",
                ..
            })
        ));
        let mut memory = Memory::usual();
        memory.put(START_INFO + 48, &u32::MAX.to_le_bytes());
        assert!(memory.parse().is_err());
    }
}
