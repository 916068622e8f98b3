use super::*;

use proptest::prelude::*;

const BASE: u64 = 0x10_0000;
const ROOM: AddressRange = AddressRange {
    start: BASE,
    end: BASE + 0x10_0000,
};
const PAGE: usize = 0x1000;
/// Where the note is, and in it the checksum.
const NOTE_AT: usize = PAGE;
const CHECKSUM: usize = NOTE_AT + NOTE_HEADER + 12 + CHECKSUM_AT;

/// Program header: kind, flags, offset, address, bytes in the file, bytes in memory.
type Header = (u32, u32, u64, u64, u64, u64);

/// Read-only data with the note, text, and data that is longer in memory, as the linker lays them out.
fn headers() -> Vec<Header> {
    vec![
        (1, 4, 0x1000, BASE, 0x200, 0x200),
        (4, 4, 0x1000, BASE, 48, 48),
        (1, 5, 0x2000, BASE + 0x1000, 0x300, 0x300),
        (1, 6, 0x3000, BASE + 0x2000, 0x100, 0x5000),
    ]
}

fn elf(headers: &[Header], entry: u64) -> Vec<u8> {
    let mut file: Vec<u8> = (0..0x3100_u32).map(|at| at.to_le_bytes()[0]).collect();
    let mut put = |at: usize, bytes: &[u8]| file[at..at + bytes.len()].copy_from_slice(bytes);
    put(0, b"\x7fELF\x02\x01\x01");
    put(16, &[2, 0, 62, 0]);
    put(32, &64_u64.to_le_bytes());
    put(54, &56_u16.to_le_bytes());
    put(56, &u16::try_from(headers.len()).unwrap().to_le_bytes());
    for (index, header) in headers.iter().enumerate() {
        let (kind, flags, offset, address, size, memory) = *header;
        let at = 64 + 56 * index;
        put(at, &kind.to_le_bytes());
        put(at + 4, &flags.to_le_bytes());
        for (word, value) in [offset, address, address, size, memory].iter().enumerate() {
            put(at + 8 + 8 * word, &value.to_le_bytes());
        }
    }
    let note = [11, 24, NOTE_KIND].map(u32::to_le_bytes).concat();
    put(NOTE_AT, &note);
    put(NOTE_AT + 12, b"Ferrostore\0\0");
    let words = [HANDOVER_VERSION, 2, 2, 0].map(u32::to_le_bytes).concat();
    put(NOTE_AT + 24, &words);
    put(NOTE_AT + 40, &entry.to_le_bytes());
    seal(&mut file);
    file
}

/// What scripts/lib/seal-image does.
fn seal(file: &mut [u8]) {
    let segments = [
        0x1000..CHECKSUM,
        CHECKSUM + 4..0x1200,
        0x2000..0x2300,
        0x3000..0x3100,
    ];
    let mut checksum = crc32fast::Hasher::new();
    for part in segments {
        checksum.update(&file[part]);
    }
    file[CHECKSUM..CHECKSUM + 4].copy_from_slice(&checksum.finalize().to_le_bytes());
}

fn good() -> Vec<u8> {
    elf(&headers(), BASE + 0x1010)
}

#[test]
fn a_good_image_is_loaded_as_it_lies_in_memory() {
    let mut file = good();
    let before = file.clone();
    let image = NextImage::check(&file, ROOM).unwrap();
    assert_eq!(
        (image.entry, image.reads_version, image.reads_own),
        (BASE + 0x1010, 2, true)
    );
    assert_eq!(
        (image.memory.start, image.memory.end),
        (BASE, BASE + 0x7000)
    );
    assert_eq!(image.loaded_size(), 0x2100);
    image.load(&mut file).unwrap();
    assert_eq!(file[..0x200], before[0x1000..0x1200]);
    assert!(file[0x200..0x1000].iter().all(|byte| *byte == 0));
    assert_eq!(file[0x1000..0x1300], before[0x2000..0x2300]);
    assert!(file[0x1300..0x2000].iter().all(|byte| *byte == 0));
    assert_eq!(file[0x2000..0x2100], before[0x3000..0x3100]);
}

#[test]
fn each_reason_to_refuse_has_its_sentence() {
    let check = |file: &[u8]| NextImage::check(file, ROOM);
    assert_eq!(check(b"not an image"), Err(ImageError::NoElf));
    assert_eq!(check(&good()[..0x3080]), Err(ImageError::Cut));
    let mut damaged = good();
    damaged[0x2100] ^= 1;
    assert_eq!(check(&damaged), Err(ImageError::Damaged));
    let mut foreign = good();
    foreign[NOTE_AT + 12] = b'f';
    assert_eq!(check(&foreign), Err(ImageError::Foreign));
    let mut other = good();
    other[NOTE_AT + 24] = 9;
    assert_eq!(check(&other), Err(ImageError::Handover(9)));
    let entry = BASE + 0x10;
    assert_eq!(
        check(&elf(&headers(), entry)),
        Err(ImageError::Entry(entry))
    );
    // Too small, and where the running image does not begin.
    for (start, end) in [(BASE, BASE + 0x6000), (BASE - 0x1000, ROOM.end)] {
        assert!(matches!(
            NextImage::check(&good(), AddressRange { start, end }),
            Err(ImageError::Range { .. })
        ));
    }
    let broken: [fn(&mut Vec<Header>); 6] = [
        |headers| headers[2].3 = BASE,
        |headers| headers[2].4 = 0x400,
        |headers| headers[2].2 = 0x800,
        |headers| headers[2].5 = u64::MAX,
        |headers| headers.swap(0, 3),
        |headers| headers.clear(),
    ];
    for (index, change) in broken.iter().enumerate() {
        let mut headers = headers();
        change(&mut headers);
        let refused = check(&elf(&headers, BASE + 0x1010));
        assert_eq!(refused, Err(ImageError::Segments), "{index}");
    }
}

proptest! {
    /// Whatever is changed of what is loaded, it is not taken; and nothing makes the check fail.
    #[test]
    fn damage_is_noticed(at in 0_usize..0x3100, bits in 1_u8..) {
        let mut file = good();
        file[at] ^= bits;
        let loaded = [0x1000..0x1200, 0x2000..0x2300, 0x3000..0x3100];
        let is_loaded = loaded.iter().any(|part| part.contains(&at));
        match NextImage::check(&file, ROOM) {
            Ok(image) => {
                prop_assert!(!is_loaded);
                prop_assert!(image.load(&mut file).is_ok());
            }
            Err(error) => prop_assert!(!error.to_string().is_empty()),
        }
    }

    /// Any file at all.
    #[test]
    fn anything_is_looked_at(header in prop::collection::vec(any::<u8>(), 0..400), len in 0_usize..0x3100) {
        let mut file = good();
        file.truncate(len);
        for (place, byte) in file.iter_mut().skip(16).zip(header) {
            *place = byte;
        }
        if let Ok(image) = NextImage::check(&file, ROOM) {
            prop_assert!(image.load(&mut file).is_ok());
        }
    }
}
