//! CONTROL, as far as its texts are not the server's own affair (protocol.md section 11).

use crate::payload::{domid, number, strings};
use crate::{Answer, Errno, Model, QUOTAS, Quota, Reply, nodes};

impl Model {
    pub(crate) fn control(&mut self, payload: &[u8]) -> Reply {
        let words = strings(payload);
        match words.as_slice() {
            [b"policy", b"set", list] => {
                self.set_policies(&text(list))?;
                ok()
            }
            [b"layer", b"add", word] => {
                self.add_layer(&text(word))?;
                ok()
            }
            [b"layer", b"remove", place] => {
                let place = number(place, u32::MAX)?;
                self.remove_layer(usize::try_from(place).unwrap_or(usize::MAX))?;
                ok()
            }
            [b"layer", b"set", list] => match self.set_layers(&text(list)) {
                true => ok(),
                false => Ok(Answer::Lines(vec![None])),
            },
            [b"policy" | b"layer"] | [b"policy" | b"layer", b"list" | b"help"] => {
                Ok(Answer::Lines(Vec::new()))
            }
            [b"check"] => ok(),
            [b"help" | b"memreport" | b"counters" | b"log" | b"quota" | b"quota-soft"]
            | [b"counters", b"total"]
            | [b"quota", b"max"] => Ok(Answer::Lines(Vec::new())),
            [b"counters", text] => {
                self.known_to_control(text)?;
                Ok(Answer::Lines(Vec::new()))
            }
            [b"log", b"on" | b"off" | b"+io" | b"-io"]
            | [b"print", _]
            | [b"quota", b"max", b"-r"] => ok(),
            [b"quota", b"set", name, value] => self.set_default(name, value),
            [b"quota-soft", b"set", b"memory", value] => self.set_default(b"soft-memory", value),
            [b"quota", text] => self.usage(text),
            _ => Err("EINVAL"),
        }
    }

    fn set_default(&mut self, name: &[u8], value: &[u8]) -> Reply {
        let value = number(value, u32::MAX).and_then(|value| match value {
            0 => Err("EINVAL"),
            value => Ok(value),
        });
        self.set_limit(name, value)?;
        ok()
    }

    fn known_to_control(&self, text: &[u8]) -> Result<u16, Errno> {
        let domid = domid(text)?;
        self.domains
            .contains_key(&domid)
            .then_some(domid)
            .ok_or("ENOENT")
    }

    /// What a domain has. Its memory is the server's own affair, and what is outstanding a matter of how it counts a reply on its way.
    fn usage(&self, text: &[u8]) -> Reply {
        let domid = self.known_to_control(text)?;
        let limits = self.limits_of(domid);
        let client = self.clients.get(&domid);
        let line = |quota: Quota, used: usize| {
            let at = quota as usize;
            let name = QUOTAS.get(at).copied().unwrap_or_default();
            let limit = limits.get(at).copied().unwrap_or_default();
            Some(format!("{name:<17}: {used:8} (max {limit:8})"))
        };
        let nodes = nodes::owned(&self.tree, self.life(domid));
        Ok(Answer::Lines(vec![
            Some(format!("Domain {domid}:")),
            line(Quota::Nodes, nodes),
            line(
                Quota::Watches,
                client.map_or(0, |client| client.watches.len()),
            ),
            None,
            None,
            line(
                Quota::Transactions,
                client.map_or(0, |client| client.transactions.len()),
            ),
        ]))
    }
}

fn text(word: &[u8]) -> String {
    String::from_utf8_lossy(word).into_owned()
}

fn ok() -> Reply {
    Ok(Answer::Bytes(b"OK\0".to_vec()))
}
