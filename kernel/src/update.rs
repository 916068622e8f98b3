//! Live update and restart, as far as they need no hardware: which image may follow, what is handed over, and how the instance that
//! comes goes on.

use alloc::boxed::Box;
use alloc::format;
use alloc::string::ToString;
use core::fmt;

use xenstore::state::Sink;
use xenstore::{Reads, Refused, Server, Updater};

use crate::hypervisor::Successor;
use crate::next_image::NextImage;

/// Lets `server` take images over CONTROL, if this domain has room for them.
pub fn offer(server: &mut Server) {
    if let Some(successor) = Successor::find() {
        server.set_updater(Box::new(Staging {
            successor,
            size: 0,
            received: 0,
        }));
    }
}

/// An image as it comes, in the reserve.
struct Staging {
    successor: Successor,
    size: usize,
    received: usize,
}

impl Staging {
    fn refuse(&mut self, why: impl fmt::Display) -> Refused {
        self.drop_image();
        Refused(why.to_string())
    }
}

impl Updater for Staging {
    fn begin(&mut self, size: u64) -> Result<(), Refused> {
        let room = self.successor.image_room();
        match usize::try_from(size) {
            Ok(size) if size <= room => {
                (self.size, self.received) = (size, 0);
                Ok(())
            }
            _ => {
                log::warn!("live-update: an image of {size} bytes does not fit into {room}");
                Err(Refused("Allocation failure.".into()))
            }
        }
    }

    fn append(&mut self, bytes: &[u8]) -> Result<(), Refused> {
        let end = self.received.saturating_add(bytes.len());
        let place = self.successor.image().get_mut(self.received..end);
        let Some(place) = place.filter(|_| end <= self.size) else {
            return Err(Refused("Too much kernel data.".into()));
        };
        place.copy_from_slice(bytes);
        self.received = end;
        Ok(())
    }

    fn check(&mut self) -> Result<Reads, Refused> {
        let room = self.successor.image_range();
        let received = self.received;
        let file = self.successor.image().get(..received).unwrap_or_default();
        match NextImage::check(file, room) {
            Ok(image) => Ok(Reads {
                version: image.reads_version,
                is_own: image.reads_own,
                name: format!(
                    "an image of {} KiB, checksum {:08x}",
                    received / 1024,
                    image.checksum
                ),
            }),
            Err(error) => Err(self.refuse(error)),
        }
    }

    fn room(&self) -> u64 {
        self.successor.stream_room()
    }

    fn drop_image(&mut self) {
        (self.size, self.received) = (0, 0);
    }
}

/// A place of limited size for a stream.
pub struct Room<'a> {
    free: &'a mut [u8],
    kept: usize,
    used: usize,
    is_full: bool,
}

impl<'a> Room<'a> {
    /// All of `bytes` but for `kept` at the end.
    pub fn new(bytes: &'a mut [u8], kept: usize) -> Self {
        Self {
            free: bytes,
            kept,
            used: 0,
            is_full: false,
        }
    }

    /// Bytes that were put, and what is left behind them; none if there was more than there is room for.
    #[must_use]
    pub fn finish(self) -> Option<(usize, &'a mut [u8])> {
        (!self.is_full).then_some((self.used, self.free))
    }
}

impl Sink for Room<'_> {
    fn room(&self) -> u64 {
        let free = self.free.len().saturating_sub(self.kept);
        u64::try_from(free).unwrap_or(u64::MAX)
    }

    fn put(&mut self, bytes: &[u8]) {
        let free = core::mem::take(&mut self.free);
        if self.is_full || bytes.len().saturating_add(self.kept) > free.len() {
            self.is_full = true;
            return;
        }
        let (place, rest) = free.split_at_mut(bytes.len());
        place.copy_from_slice(bytes);
        self.free = rest;
        self.used = self.used.saturating_add(bytes.len());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_room_takes_what_fits_and_says_what_did_not() {
        let mut bytes = [0; 8];
        let mut room = Room::new(&mut bytes, 3);
        room.put(b"abc");
        room.put(b"de");
        let (used, rest) = room.finish().unwrap();
        assert_eq!((used, rest.len()), (5, 3));
        assert_eq!(&bytes[..5], b"abcde");
        let mut room = Room::new(&mut bytes, 1);
        room.put(b"12345678");
        room.put(b"1");
        assert!(room.finish().is_none());
    }
}
