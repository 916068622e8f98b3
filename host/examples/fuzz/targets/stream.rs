//! Streams of state: any bytes are refused with a place and a reason, or make a server that is in order and writes what it reads again.

use xenstore::state::{Format, HostLink};
use xenstore::wire::{Header, Kind};
use xenstore::{AnyStorage, ConnId, DomId, Instant, Server, Settings};

/// Most bytes of output that are taken from a connection that came with the stream.
const OUTPUT_MAX: usize = 1 << 20;

pub(crate) fn run(input: &[u8]) {
    let Ok(restored) = Server::<AnyStorage>::import(input, settings(), Instant(7)) else {
        return;
    };
    let mut server = restored.server;
    let first = export(&server);
    let again =
        Server::<AnyStorage>::import(&first, settings(), Instant(7)).expect("what was written");
    assert_eq!(export(&again.server), first, "another state was read");
    for link in &restored.links {
        let request = [&list_root().encode()[..], b"/\0"].concat();
        let _fault = server.handle_bytes(link.conn, &request);
    }
    server.run(Instant(8), 1000);
    for link in &restored.links {
        let mut taken = 0;
        while taken < OUTPUT_MAX {
            let waiting = server.poll_output(link.conn).len();
            if waiting == 0 {
                break;
            }
            server.consume_output(link.conn, waiting);
            taken += waiting;
        }
    }
    server.handle_timeout(Instant(1 << 40));
    export(&server);
}

fn settings() -> Settings {
    Settings::new(DomId::new(0), DomId::new(31))
}

fn list_root() -> Header {
    Header {
        kind: Kind::Directory.number(),
        len: 2,
        ..Header::default()
    }
}

fn export(server: &Server) -> Vec<u8> {
    let mut stream = Vec::new();
    let links = |_: ConnId| HostLink::default();
    server.export(Format::Own, Instant(7), &links, &mut stream);
    stream
}
