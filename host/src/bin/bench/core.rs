//! The store without sockets, as a target: it runs in a child process (store.rs), so that callgrind can be told from outside what to count.

use std::collections::VecDeque;
use std::ffi::OsString;
use std::io::{BufReader, Read, Write};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};

use crate::store::read_word;
use crate::target::{Client, Failure, Message, Target, split_message};

pub(crate) struct Core {
    program: OsString,
    arguments: Vec<OsString>,
    running: Option<Running>,
    inboxes: Vec<VecDeque<Message>>,
}

struct Running {
    child: Child,
    input: ChildStdin,
    output: BufReader<ChildStdout>,
}

impl Core {
    /// The program and its arguments end in `bench store`.
    pub(crate) fn new(program: OsString, arguments: Vec<OsString>) -> Self {
        Self {
            program,
            arguments,
            running: None,
            inboxes: Vec::new(),
        }
    }

    fn running(&mut self) -> Result<&mut Running, Failure> {
        self.running.as_mut().ok_or_else(|| "no store runs".into())
    }

    /// The store ends when its input does.
    fn stop(&mut self) {
        if let Some(Running {
            mut child, input, ..
        }) = self.running.take()
        {
            drop(input);
            // It may have ended by itself; there is nothing to do about that.
            drop(child.wait());
        }
    }

    fn put(&mut self, client: Client, request: &[u8]) -> Result<(), Failure> {
        let client = u32::try_from(client.0)?.to_le_bytes();
        let length = u32::try_from(request.len())?.to_le_bytes();
        let frame = [&client, &length, request].concat();
        let input = &mut self.running()?.input;
        input.write_all(&frame)?;
        Ok(input.flush()?)
    }

    fn take(&mut self) -> Result<(), Failure> {
        let output = &mut self.running()?.output;
        let mut taken = Vec::new();
        for _ in 0..read_word(output)? {
            let client = usize::try_from(read_word(output)?)?;
            let mut bytes = vec![0; usize::try_from(read_word(output)?)?];
            output.read_exact(&mut bytes)?;
            taken.push((client, bytes));
        }
        for (client, bytes) in taken {
            let mut rest = bytes.as_slice();
            if let Some(inbox) = self.inboxes.get_mut(client) {
                while let Some((message, left)) = split_message(rest) {
                    inbox.push_back(message);
                    rest = left;
                }
            }
        }
        Ok(())
    }
}

impl Target for Core {
    fn name(&self) -> &str {
        "core"
    }

    fn restart(&mut self) -> Result<(), Failure> {
        self.stop();
        self.inboxes.clear();
        let mut child = Command::new(&self.program)
            .args(&self.arguments)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()?;
        let input = child.stdin.take().ok_or("no pipe")?;
        let output = BufReader::new(child.stdout.take().ok_or("no pipe")?);
        self.running = Some(Running {
            child,
            input,
            output,
        });
        Ok(())
    }

    fn process(&self) -> u32 {
        self.running
            .as_ref()
            .map_or(0, |running| running.child.id())
    }

    fn has_domains(&self) -> bool {
        true
    }

    fn open(&mut self) -> Result<Client, Failure> {
        let client = Client(self.inboxes.len());
        self.inboxes.push(VecDeque::new());
        self.put(client, &[])?;
        Ok(client)
    }

    fn send(&mut self, client: Client, request: &[u8]) -> Result<(), Failure> {
        self.put(client, request)?;
        self.take()
    }

    fn receive(&mut self, client: Client) -> Result<Message, Failure> {
        let inbox = self.inboxes.get_mut(client.0);
        let message = inbox.and_then(VecDeque::pop_front);
        message.ok_or_else(|| "a message did not come".into())
    }
}

impl Drop for Core {
    fn drop(&mut self) {
        self.stop();
    }
}
