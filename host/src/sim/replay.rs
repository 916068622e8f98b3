//! What a journal tells, done again: the nodes that there must be, if it tells of everything.

use std::collections::BTreeMap;

use xenstore::Server;

/// Nodes by path: value, and permissions with a NUL behind each.
pub(crate) type Nodes = BTreeMap<String, (Vec<u8>, String)>;

/// The nodes as the journal has them, with values as they are written there; nothing of a store that keeps none.
#[derive(Default)]
pub(crate) struct Replay {
    position: u64,
    nodes: Nodes,
    is_kept: bool,
}

impl Replay {
    /// Begins with the nodes that there are, if a journal is kept.
    pub(crate) fn begin(&mut self, server: &Server) {
        if let Some((start, text)) = server.journal_from(0) {
            self.position = start + u64::try_from(text.len()).unwrap_or_default();
            self.nodes = written(server.all_nodes());
            self.is_kept = true;
        }
    }

    /// Does what was written down since this was asked last.
    pub(crate) fn follow(&mut self, server: &Server) -> Result<(), String> {
        let Some((start, text)) = server.journal_from(self.position) else {
            return Ok(());
        };
        if start != self.position {
            // Lines were dropped for new ones before anybody could read them.
            self.nodes = written(server.all_nodes());
        } else {
            for line in text.lines() {
                self.edit(line)
                    .ok_or(format!("this is no line of a journal: {line}"))?;
            }
        }
        self.position = start + u64::try_from(text.len()).unwrap_or_default();
        Ok(())
    }

    fn edit(&mut self, line: &str) -> Option<()> {
        let mut words = line.splitn(6, ' ');
        let (_commit, _ms, what, path) =
            (words.next()?, words.next()?, words.next()?, words.next()?);
        if what == "rm" {
            let below = format!("{path}/");
            self.nodes
                .retain(|other, _| other != path && !other.starts_with(&below));
            return Some(());
        }
        let permissions = words.next()?.replace(',', "\0") + "\0";
        let value = words.next()?.as_bytes().to_vec();
        self.nodes.insert(path.to_owned(), (value, permissions));
        Some(())
    }

    /// Whether these are all nodes, with the same values and owners, and with no more permissions: those of domains that are no more go
    /// without a line.
    pub(crate) fn check(&self, nodes: &Nodes) -> Result<(), String> {
        if !self.is_kept {
            return Ok(());
        }
        if let Some(path) = self.nodes.keys().find(|path| !nodes.contains_key(*path)) {
            return Err(format!("{path} is in the journal and not in the store"));
        }
        for (path, (value, permissions)) in nodes {
            let told = self.nodes.get(path);
            let is_told = told.is_some_and(|(told, all)| {
                let mut entries = permissions.split_terminator('\0');
                let mut all = all.split_terminator('\0');
                told.iter().copied().eq(value.escape_ascii())
                    && entries.next() == all.next()
                    && entries.all(|entry| all.any(|told| told == entry))
            });
            if !is_told {
                return Err(format!("{path} is not what the journal says: {told:?}"));
            }
        }
        Ok(())
    }
}

/// Values as a journal has them.
fn written(mut nodes: Nodes) -> Nodes {
    for (value, _) in nodes.values_mut() {
        *value = value.escape_ascii().collect();
    }
    nodes
}
