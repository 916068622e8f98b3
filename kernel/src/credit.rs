//! The right of a connection to be looked at: what keeps an idle ring free of cost and a busy one fair.
//!
//! A connection without credit is not looked at. Its event gives it one look; so does the store when it has something for it, and so
//! does a look that moved bytes, since the peer sends no event for what it adds meanwhile. Each look takes one. An event that is lost
//! is made up for by the slow scan of all rings ([`crate::sweep`]).

/// Looks that a connection has left; 0 or 1 in an ordinary life.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct IoCredit(u32);

impl IoCredit {
    /// Grants one look. Grants merge while none is used, as events do in Xen. Answers whether there was none before.
    pub fn grant(&mut self) -> bool {
        let had_none = self.is_empty();
        self.0 = self.0.max(1);
        had_none
    }

    /// Whether no look is left.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0 == 0
    }

    /// Takes one look, if there is one.
    pub fn take(&mut self) -> bool {
        let had_one = !self.is_empty();
        self.0 = self.0.saturating_sub(1);
        had_one
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn grants_merge_until_one_is_taken() {
        let mut credit = IoCredit::default();
        assert!(!credit.take());
        assert!(credit.grant());
        assert!(!credit.grant());
        assert!(credit.take());
        assert!(!credit.take());
        assert!(credit.grant());
    }
}
