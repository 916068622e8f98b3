//! Tests of the image's memory functions (`boot/src/memory.s`), which the image itself cannot run: here they replace the C library's.

use core::arch::global_asm;
use core::ffi::c_int;

use proptest::prelude::*;

global_asm!(include_str!("../../../boot/src/memory.s"));

unsafe extern "C" {
    fn memcpy(to: *mut u8, from: *const u8, length: usize) -> *mut u8;
    fn memmove(to: *mut u8, from: *const u8, length: usize) -> *mut u8;
    fn memset(to: *mut u8, byte: c_int, length: usize) -> *mut u8;
    fn memcmp(first: *const u8, second: *const u8, length: usize) -> c_int;
    fn bcmp(first: *const u8, second: *const u8, length: usize) -> c_int;
}

const AREA: usize = 600;
/// Longest length tried: past every threshold of the functions.
const LENGTH: usize = 150;

fn area() -> Vec<u8> {
    (0..AREA).map(byte_at).collect()
}

fn byte_at(index: usize) -> u8 {
    u8::try_from(index * 7 % 251).unwrap()
}

/// What an [`area`] looks like when `length` bytes were copied in it.
fn area_after_copy(to: usize, from: usize, length: usize) -> Vec<u8> {
    let source_of = |index| {
        if (to..to + length).contains(&index) {
            index - to + from
        } else {
            index
        }
    };
    (0..AREA).map(source_of).map(byte_at).collect()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(4000))]

    #[test]
    fn memcpy_copies_exactly(to in 0..100_usize, from in 300..400_usize, length in 0..=LENGTH) {
        let mut got = area();
        let base = got.as_mut_ptr();
        let (target, source) = (base.wrapping_add(to), base.wrapping_add(from));
        // SAFETY: both ranges lie in `got` and do not overlap.
        let result = unsafe { memcpy(target, source, length) };
        prop_assert_eq!(result, target);
        prop_assert_eq!(got, area_after_copy(to, from, length));
    }

    #[test]
    fn memmove_survives_overlap(to in 0..200_usize, from in 0..200_usize, length in 0..=LENGTH) {
        let mut got = area();
        let base = got.as_mut_ptr();
        let (target, source) = (base.wrapping_add(to), base.wrapping_add(from));
        // SAFETY: both ranges lie in `got`; `memmove` allows overlap.
        let result = unsafe { memmove(target, source, length) };
        prop_assert_eq!(result, target);
        prop_assert_eq!(got, area_after_copy(to, from, length));
    }

    #[test]
    fn memset_fills_exactly(to in 0..100_usize, byte in any::<u8>(), length in 0..=LENGTH) {
        let (mut got, mut expected) = (area(), area());
        let target = got.as_mut_ptr().wrapping_add(to);
        // SAFETY: the range lies in `got`.
        let result = unsafe { memset(target, c_int::from(byte) | 0x100, length) };
        prop_assert_eq!(result, target);
        for place in expected.iter_mut().skip(to).take(length) {
            *place = byte;
        }
        prop_assert_eq!(got, expected);
    }

    #[test]
    fn memcmp_finds_the_first_difference(length in 0..=LENGTH, changes in prop::collection::vec((0..LENGTH, any::<u8>()), 0..3)) {
        let first = area();
        let mut second = area();
        for (index, byte) in changes {
            second[index] = byte;
        }
        // Bytes are compared in plain loops here: slices would use the function under test.
        let expected = (0..length).find(|index| first[*index] != second[*index])
            .map_or(0, |index| c_int::from(first[index]) - c_int::from(second[index]));
        // SAFETY: both areas are longer than `length`.
        let order = unsafe { memcmp(first.as_ptr(), second.as_ptr(), length) };
        prop_assert_eq!(order.signum(), expected.signum());
        // SAFETY: as above.
        let differs = unsafe { bcmp(first.as_ptr(), second.as_ptr(), length) };
        prop_assert_eq!(differs != 0, expected != 0);
    }
}
