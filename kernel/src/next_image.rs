//! The image of the next instance, as it came over CONTROL: whether it is whole, one of ours, and fits. No hardware.
//!
//! It is checked before anything else is done, so that a wrong file or a damaged one changes nothing. What it says of itself stands in
//! an ELF note that only our images have; a checksum in it covers all that is loaded.

use core::fmt;
use core::ops::Range;

use crate::hypervisor::ranges::AddressRange;

/// The type of the note of owner "Ferrostore".
pub const NOTE_KIND: u32 = 1;
/// What this image understands of what another hands over (`hypervisor::handover`).
pub const HANDOVER_VERSION: u32 = 2;
/// The latest version of the state stream that this image reads.
pub const READS_VERSION: u32 = if cfg!(feature = "old-stream") { 1 } else { 2 };
/// Which of our own records it reads in it: 2 for all, 1 for all but nodes in a row, 0 for none.
pub const READS_OWN: u32 = if cfg!(feature = "old-stream") { 0 } else { 2 };

/// What [`READS_OWN`] must be at least for what this image writes.
const READS_OWN_ALL: u32 = 2;

/// Segments of an image that are loaded.
const SEGMENTS_MAX: usize = 8;
/// Entries of an image's program header table.
const PROGRAMS_MAX: u16 = 16;

const OWNER: &[u8] = b"Ferrostore\0";
const NOTE_HEADER: usize = 12;
const DESCRIPTION: usize = 24;
/// Where in the description the checksum is.
const CHECKSUM_AT: usize = 12;

/// An image that may follow.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NextImage {
    /// Where it is entered.
    pub entry: u64,
    /// All memory that it takes where it runs, what it does not load included.
    pub memory: AddressRange,
    /// The latest version of the state stream that it reads.
    pub reads_version: u32,
    /// Whether it reads our own records, all that this image writes.
    pub reads_own: bool,
    /// By which it can be told from others.
    pub checksum: u32,
    segments: heapless::Vec<Segment, SEGMENTS_MAX>,
}

/// A part that is loaded.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Segment {
    /// Its place in the file.
    file: Range<usize>,
    /// Its place in memory, counted from the image's first byte.
    place: usize,
    executable: bool,
}

impl Segment {
    fn end(&self) -> usize {
        self.place.saturating_add(self.file.len())
    }
}

impl NextImage {
    /// Checks `file`, which must run in `room`, physical addresses, from its beginning on.
    ///
    /// # Errors
    /// What is wrong with it, as a sentence.
    pub fn check(file: &[u8], room: AddressRange) -> Result<Self, ImageError> {
        let elf = Elf::new(file)?;
        let memory = elf.memory()?;
        if memory.start != room.start || !room.contains(memory) {
            return Err(ImageError::Range { memory, room });
        }
        let segments = elf.segments(memory.start)?;
        let description_at = elf.description().ok_or(ImageError::Foreign)?;
        let description = Fields(
            file.get(description_at..)
                .and_then(|rest| rest.get(..DESCRIPTION))
                .ok_or(ImageError::Foreign)?,
        );
        let handover = description.u32(0);
        if handover != HANDOVER_VERSION {
            return Err(ImageError::Handover(handover));
        }
        let image = Self {
            entry: description.u64(16),
            memory,
            reads_version: description.u32(4),
            reads_own: description.u32(8) >= READS_OWN_ALL,
            checksum: description.u32(CHECKSUM_AT),
            segments,
        };
        if image.checksum_of(file, description_at) != image.checksum {
            return Err(ImageError::Damaged);
        }
        if !image.is_entered_in_text() {
            return Err(ImageError::Entry(image.entry));
        }
        Ok(image)
    }

    /// Bytes of the image as it lies in memory before it runs.
    #[must_use]
    pub fn loaded_size(&self) -> usize {
        self.segments.last().map_or(0, Segment::end)
    }

    /// Turns the file, which was checked, into what lies in memory, in place.
    ///
    /// # Errors
    /// Its segments are not in the order of memory, which [`NextImage::check`] excludes.
    pub fn load(&self, file: &mut [u8]) -> Result<(), ImageError> {
        let mut end = 0;
        for segment in &self.segments {
            let gap = file
                .get_mut(end..segment.place)
                .ok_or(ImageError::Segments)?;
            gap.fill(0);
            let fits = segment.end() <= file.len() && segment.file.end <= file.len();
            if !fits {
                return Err(ImageError::Segments);
            }
            file.copy_within(segment.file.clone(), segment.place);
            end = segment.end();
        }
        Ok(())
    }

    fn checksum_of(&self, file: &[u8], description: usize) -> u32 {
        let at = description.saturating_add(CHECKSUM_AT);
        let own = at..at.saturating_add(4);
        let mut checksum = crc32fast::Hasher::new();
        for segment in &self.segments {
            let Range { start, end } = segment.file;
            let (before, behind) = if segment.file.contains(&own.start) {
                (start..own.start, own.end..end)
            } else {
                (start..end, end..end)
            };
            for part in [before, behind] {
                checksum.update(file.get(part).unwrap_or_default());
            }
        }
        checksum.finalize()
    }

    fn is_entered_in_text(&self) -> bool {
        let Some(entry) = self.entry.checked_sub(self.memory.start) else {
            return false;
        };
        let entry = usize::try_from(entry).unwrap_or(usize::MAX);
        let in_text = |segment: &Segment| {
            segment.executable && (segment.place..segment.end()).contains(&entry)
        };
        self.segments.iter().any(in_text)
    }
}

/// A file that is an x86-64 ELF program.
struct Elf<'a> {
    file: &'a [u8],
    programs: usize,
    count: u16,
}

/// One entry of the program header table.
struct Program {
    kind: u32,
    flags: u32,
    offset: u64,
    address: u64,
    file_size: u64,
    memory_size: u64,
}

impl<'a> Elf<'a> {
    const PROGRAM_SIZE: u16 = 56;
    const LOAD: u32 = 1;
    const NOTE: u32 = 4;
    const EXECUTABLE: u32 = 1;

    fn new(file: &'a [u8]) -> Result<Self, ImageError> {
        const MAGIC: &[u8] = b"\x7fELF\x02\x01\x01";
        const EXECUTABLE_FILE: u16 = 2;
        const X86_64: u16 = 62;
        if !file.starts_with(MAGIC) {
            return Err(ImageError::NoElf);
        }
        let header = Fields(file);
        if (header.u16(16), header.u16(18)) != (EXECUTABLE_FILE, X86_64) {
            return Err(ImageError::NoElf);
        }
        let count = header.u16(56);
        if header.u16(54) != Self::PROGRAM_SIZE || count > PROGRAMS_MAX {
            return Err(ImageError::Segments);
        }
        let programs = usize::try_from(header.u64(32)).map_err(|_| ImageError::Segments)?;
        Ok(Self {
            file,
            programs,
            count,
        })
    }

    fn of_kind(&self, kind: u32) -> impl Iterator<Item = Program> + use<'a> {
        let table = self.file.get(self.programs..).unwrap_or_default();
        let entries = table.chunks_exact(usize::from(Self::PROGRAM_SIZE));
        entries
            .take(usize::from(self.count))
            .map(|entry| {
                let entry = Fields(entry);
                Program {
                    kind: entry.u32(0),
                    flags: entry.u32(4),
                    offset: entry.u64(8),
                    address: entry.u64(24),
                    file_size: entry.u64(32),
                    memory_size: entry.u64(40),
                }
            })
            .filter(move |program| program.kind == kind)
    }

    /// What the image takes of physical memory.
    fn memory(&self) -> Result<AddressRange, ImageError> {
        let mut all: Option<AddressRange> = None;
        for program in self.of_kind(Self::LOAD) {
            let range = AddressRange::of_size(program.address, program.memory_size)
                .ok_or(ImageError::Segments)?;
            let before = all.unwrap_or(range);
            // What is loaded in place goes from low to high addresses.
            if range.start < before.end && all.is_some() {
                return Err(ImageError::Segments);
            }
            all = Some(AddressRange {
                start: before.start,
                end: range.end,
            });
        }
        let all = all.ok_or(ImageError::Segments)?;
        Ok(all.grown_to_pages())
    }

    fn segments(&self, base: u64) -> Result<heapless::Vec<Segment, SEGMENTS_MAX>, ImageError> {
        let mut segments = heapless::Vec::<Segment, SEGMENTS_MAX>::new();
        for program in self.of_kind(Self::LOAD) {
            let file = file_range(program.offset, program.file_size)
                .filter(|file| file.end <= self.file.len())
                .ok_or(ImageError::Cut)?;
            let place = program
                .address
                .checked_sub(base)
                .and_then(|place| usize::try_from(place).ok());
            let segment = Segment {
                file,
                place: place.ok_or(ImageError::Segments)?,
                executable: program.flags & Self::EXECUTABLE != 0,
            };
            let follows = segments.last().is_none_or(|last| {
                last.end() <= segment.place && last.file.end <= segment.file.start
            });
            // Loading in place only moves bytes down, onto what has been moved already.
            let moves_down = segment.place <= segment.file.start;
            let is_short = program.file_size <= program.memory_size;
            if !(follows && moves_down && is_short) || segments.push(segment).is_err() {
                return Err(ImageError::Segments);
            }
        }
        Ok(segments)
    }

    /// Where in the file our note's description is.
    fn description(&self) -> Option<usize> {
        self.of_kind(Self::NOTE).find_map(|program| {
            let range = file_range(program.offset, program.file_size)?;
            self.note_in(range)
        })
    }

    fn note_in(&self, range: Range<usize>) -> Option<usize> {
        const NOTES_MAX: usize = 16;
        let mut at = range.start;
        for _ in 0..NOTES_MAX {
            let note = Fields(self.file.get(at..range.end)?);
            let length = |at| usize::try_from(note.u32(at)).ok();
            let (owner, description) = (length(0)?, length(4)?);
            let owner_at = at.checked_add(NOTE_HEADER)?;
            let description_at = owner_at.checked_add(owner.checked_next_multiple_of(4)?)?;
            let is_ours = self.file.get(owner_at..)?.get(..owner)? == OWNER
                && note.u32(8) == NOTE_KIND
                && description == DESCRIPTION;
            if is_ours {
                return Some(description_at);
            }
            at = description_at.checked_add(description.checked_next_multiple_of(4)?)?;
        }
        None
    }
}

fn file_range(offset: u64, size: u64) -> Option<Range<usize>> {
    let start = usize::try_from(offset).ok()?;
    let end = start.checked_add(usize::try_from(size).ok()?)?;
    Some(start..end)
}

/// Little-endian fields; one outside reads as 0.
struct Fields<'a>(&'a [u8]);

impl Fields<'_> {
    fn u16(&self, at: usize) -> u16 {
        self.at(at).map_or(0, u16::from_le_bytes)
    }

    fn u32(&self, at: usize) -> u32 {
        self.at(at).map_or(0, u32::from_le_bytes)
    }

    fn u64(&self, at: usize) -> u64 {
        self.at(at).map_or(0, u64::from_le_bytes)
    }

    fn at<const WIDTH: usize>(&self, at: usize) -> Option<[u8; WIDTH]> {
        self.0.get(at..)?.first_chunk().copied()
    }
}

/// Why an image cannot follow.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ImageError {
    /// Not an ELF program for this processor.
    NoElf,
    /// It says that it has more than there is.
    Cut,
    /// What it loads is not laid out as our linker does it.
    Segments,
    /// It has not our note.
    Foreign,
    /// Another way of handing over.
    Handover(u32),
    /// The checksum is not that of the content.
    Damaged,
    /// Its entry is no code of its own.
    Entry(u64),
    /// It needs memory that it cannot have.
    Range {
        /// What it needs.
        memory: AddressRange,
        /// What it could have.
        room: AddressRange,
    },
}

impl fmt::Display for ImageError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NoElf => f.write_str("not an x86-64 ELF image"),
            Self::Cut => f.write_str("the image is cut off"),
            Self::Segments => f.write_str("the image's segments cannot be loaded in place"),
            Self::Foreign => f.write_str("not a Ferrostore image with live update"),
            Self::Handover(version) => write!(
                f,
                "the image takes over by version {version}, this instance hands over by {HANDOVER_VERSION}"
            ),
            Self::Damaged => f.write_str("the image is damaged: its checksum is wrong"),
            Self::Entry(entry) => write!(f, "the image's entry {entry:#x} is not in its text"),
            Self::Range { memory, room } => write!(
                f,
                "the image needs {:#x} to {:#x}, and may have {:#x} to {:#x}",
                memory.start, memory.end, room.start, room.end
            ),
        }
    }
}

#[cfg(test)]
mod tests;
