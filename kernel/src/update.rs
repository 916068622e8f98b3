//! Live update and restart, as far as they need no hardware: which image may follow, what is handed over, and how the instance that
//! comes goes on.

use alloc::boxed::Box;
use alloc::format;
use alloc::rc::Rc;
use alloc::string::{String, ToString};
use core::cell::RefCell;
use core::convert::Infallible;

use xenstore::state::{Format, Sink};
use xenstore::{Reads, Refused, Server, UpdatePlan, Updater};

use crate::boot_info::COMMAND_LINE_MAX;
use crate::dispatch::Dispatcher;
use crate::hypervisor::Successor;
use crate::next_image::{ImageError, NextImage};
use crate::xen::Xen;

/// Lets `server` take images over CONTROL, if this domain has room for them. Once.
pub fn offer(server: &mut Server) -> Option<NextInstance> {
    let staging = Staging {
        successor: Successor::find()?,
        size: 0,
        received: 0,
        checked: None,
    };
    let staging = Rc::new(RefCell::new(staging));
    server.set_updater(Box::new(Intake(Rc::clone(&staging))));
    Some(NextInstance(staging))
}

/// The image that came over CONTROL, and the way to it.
pub struct NextInstance(Rc<RefCell<Staging>>);

impl NextInstance {
    /// Gives way to the image that the plan speaks of. Comes back only if that was not even tried.
    ///
    /// # Errors
    /// Why not, for the administrator.
    pub fn hand_over<X: Xen>(
        &self,
        dispatcher: &mut Dispatcher<X>,
        plan: &UpdatePlan,
    ) -> Result<Infallible, String> {
        let line = plan.command_line.as_deref().unwrap_or_default();
        if line.len() > COMMAND_LINE_MAX {
            return Err(format!(
                "The command line has more than {COMMAND_LINE_MAX} bytes."
            ));
        }
        let Err(why) = self.0.borrow_mut().hand_over(dispatcher, plan);
        Err(match why {
            Obstacle::Image(why) => why,
            Obstacle::Room => {
                let lacks = dispatcher.lacks_room(plan);
                lacks.map_or_else(|| "Not enough memory.".into(), |Refused(why)| why)
            }
        })
    }
}

/// Why there is no hand-over.
enum Obstacle {
    Image(String),
    Room,
}

/// An image as it comes, in the reserve.
struct Staging {
    successor: Successor,
    size: usize,
    received: usize,
    /// What was found when all of it was there.
    checked: Option<NextImage>,
}

impl Staging {
    fn drop_image(&mut self) {
        (self.size, self.received, self.checked) = (0, 0, None);
    }

    fn check(&mut self) -> Result<Reads, ImageError> {
        let room = self.successor.image_range();
        let received = self.received;
        let file = self.successor.image().get(..received).unwrap_or_default();
        let image = NextImage::check(file, room)?;
        let reads = Reads {
            version: image.reads_version,
            is_own: image.reads_own,
            name: format!(
                "an image of {} KiB, checksum {:08x}",
                received / 1024,
                image.checksum
            ),
        };
        self.checked = Some(image);
        Ok(reads)
    }

    fn hand_over<X: Xen>(
        &mut self,
        dispatcher: &mut Dispatcher<X>,
        plan: &UpdatePlan,
    ) -> Result<Infallible, Obstacle> {
        let began = dispatcher.last_now();
        let image = self
            .load()
            .map_err(|error| Obstacle::Image(error.to_string()))?;
        let exchange = self
            .successor
            .exchange(&image)
            .map_err(|why| Obstacle::Image(why.into()))?;
        let room = self.successor.stream();
        let handed_over = dispatcher.hand_over(plan.format, began, room);
        let handed_over = handed_over.ok_or(Obstacle::Room)?;
        // Only our own format says that the requester is still to be answered, and what.
        let way_back = match plan.format {
            Format::Own => None,
            Format::V1 | Format::V2 => {
                let rest = room.get_mut(handed_over.size()..).unwrap_or_default();
                let way_back = dispatcher.hand_over(Format::Own, began, rest);
                Some(way_back.ok_or(Obstacle::Room)?)
            }
        };
        dispatcher.pause();
        let line = plan.command_line.as_deref();
        self.successor
            .try_image(&exchange, line, handed_over, way_back, began)
    }

    /// Lays the image out as it is to lie in memory. It is no file any more then: it can be checked no second time.
    fn load(&mut self) -> Result<NextImage, ImageError> {
        let image = self.checked.take().ok_or(ImageError::Cut)?;
        image.load(self.successor.image())?;
        Ok(image)
    }
}

/// The store's side of [`Staging`].
struct Intake(Rc<RefCell<Staging>>);

impl Updater for Intake {
    fn begin(&mut self, size: u64) -> Result<(), Refused> {
        let mut staging = self.0.borrow_mut();
        let room = staging.successor.image_room();
        match usize::try_from(size) {
            Ok(size) if size <= room => {
                staging.drop_image();
                staging.size = size;
                Ok(())
            }
            _ => {
                log::warn!("live-update: an image of {size} bytes does not fit into {room}");
                Err(Refused("Allocation failure.".into()))
            }
        }
    }

    fn append(&mut self, bytes: &[u8]) -> Result<(), Refused> {
        let mut staging = self.0.borrow_mut();
        let (received, size) = (staging.received, staging.size);
        let end = received.saturating_add(bytes.len());
        let place = staging.successor.image().get_mut(received..end);
        let Some(place) = place.filter(|_| end <= size) else {
            return Err(Refused("Too much kernel data.".into()));
        };
        place.copy_from_slice(bytes);
        staging.received = end;
        Ok(())
    }

    fn check(&mut self) -> Result<Reads, Refused> {
        let checked = self.0.borrow_mut().check();
        checked.map_err(|error| Refused(error.to_string()))
    }

    fn room(&self) -> u64 {
        self.0.borrow().successor.stream_room()
    }

    fn drop_image(&mut self) {
        self.0.borrow_mut().drop_image();
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
