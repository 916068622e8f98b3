//! What comes before the first request: the boot loader's tables and the command line.

use kernel::boot_info::{ImageLayout, PhysicalMemory, read_start_info};
use kernel::config::{Config, MAX_WARNINGS};
use kernel::hypervisor::ranges::AddressRange;

/// Where the input lies in physical memory.
const BASE: u64 = 0x1000;
/// `XEN_HVM_START_MAGIC_VALUE`.
const MAGIC: u32 = 0x336e_c578;

const fn range(start: u64, end: u64) -> AddressRange {
    AddressRange { start, end }
}

/// Two pages of an image that lie in the middle of what tables can name.
const IMAGE: ImageLayout = ImageLayout {
    rodata: range(0x2000, 0x2400),
    text: range(0x2400, 0x2800),
    sealed: range(0x2800, 0x2c00),
    data: range(0x2c00, 0x4000),
    kept: range(0x3800, 0x3c00),
    restart_entry: 0x2400,
    stack_guard: 0x3000,
    build_id: &[],
};

struct Window(Vec<u8>);

impl PhysicalMemory for Window {
    fn read(&self, address: u64, into: &mut [u8]) -> Option<()> {
        let at = usize::try_from(address.checked_sub(BASE)?).ok()?;
        let end = at.checked_add(into.len())?;
        into.copy_from_slice(self.0.get(at..end)?);
        Some(())
    }
}

pub(crate) fn start_info(input: &[u8]) {
    let mut bytes = input.to_vec();
    // Most inputs should get past the first check.
    if bytes.first().is_some_and(|first| *first < 240) && bytes.len() >= 4 {
        bytes[..4].copy_from_slice(&MAGIC.to_le_bytes());
    }
    match read_start_info(&Window(bytes), BASE, IMAGE) {
        Ok(info) => {
            let is_printable = |byte: u8| byte == b' ' || byte.is_ascii_graphic();
            assert!(info.command_line.bytes().all(is_printable));
            for module in &info.modules {
                assert!(module.start <= module.end);
                assert!(!module.overlaps(IMAGE.whole()), "{module:?}");
            }
        }
        Err(error) => assert!(error.to_string().starts_with("broken start_info: ")),
    }
}

pub(crate) fn command_line(input: &[u8]) {
    let parsed = Config::parse(input);
    assert_eq!(parsed, Config::parse(input));
    match parsed {
        Ok(config) => {
            assert!(config.event.0 > 0);
            assert!(config.warnings.len() <= MAX_WARNINGS);
            let mut sentences = config.warnings.iter();
            assert!(sentences.all(|sentence| is_readable(sentence)));
        }
        Err(error) => assert!(is_readable(&error.to_string()), "{error}"),
    }
}

/// A line that a person can read on a console.
fn is_readable(sentence: &str) -> bool {
    let is_printable = |byte: u8| byte == b' ' || byte.is_ascii_graphic();
    sentence.len() <= 400 && sentence.bytes().all(is_printable)
}
