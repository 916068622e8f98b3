//! A client of a running store: its socket, or the device by which Linux passes requests on.

use std::fs::File;
use std::io::{self, Read, Write};
use std::os::unix::fs::FileTypeExt;
use std::os::unix::net::UnixStream;
use std::path::Path;

use xenstore::ReqId;
use xenstore::wire::{HEADER_SIZE, Header, Kind};

/// What goes both ways.
trait Stream: Read + Write {}
impl<T: Read + Write> Stream for T {}

pub(crate) struct Client(Box<dyn Stream>);

/// A reply, or the name of the error that came instead.
pub(crate) type Reply = Result<Vec<u8>, String>;

impl Client {
    /// Opens a socket or a device.
    ///
    /// # Errors
    /// It cannot be opened.
    pub(crate) fn connect(path: &Path) -> io::Result<Self> {
        let is_socket = path.metadata()?.file_type().is_socket();
        Ok(Self(if is_socket {
            Box::new(UnixStream::connect(path)?)
        } else {
            Box::new(File::options().read(true).write(true).open(path)?)
        }))
    }

    /// Sends a request and waits for its reply.
    ///
    /// # Errors
    /// The store is not there any more.
    pub(crate) fn ask(&mut self, kind: Kind, tx_id: u32, payload: &[u8]) -> io::Result<Reply> {
        let header = Header {
            kind: kind.number(),
            req_id: ReqId(0),
            tx_id,
            len: u32::try_from(payload.len()).map_err(io::Error::other)?,
        };
        self.0.write_all(&[&header.encode(), payload].concat())?;
        loop {
            let (kind, payload) = self.receive()?;
            match kind {
                Some(Kind::WatchEvent) => {}
                Some(Kind::Error) => return Ok(Err(text(&payload))),
                _ => return Ok(Ok(payload)),
            }
        }
    }

    fn receive(&mut self) -> io::Result<(Option<Kind>, Vec<u8>)> {
        let mut header = [0; HEADER_SIZE];
        self.0.read_exact(&mut header)?;
        let header = Header::decode(header);
        let mut payload = vec![0; usize::try_from(header.len).map_err(io::Error::other)?];
        self.0.read_exact(&mut payload)?;
        Ok((Kind::from_number(header.kind), payload))
    }
}

/// A reply that is text, without its NUL.
pub(crate) fn text(payload: &[u8]) -> String {
    let text = String::from_utf8_lossy(payload);
    text.trim_end_matches('\0').to_owned()
}
