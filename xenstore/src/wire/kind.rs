//! The message types, in `xs_wire.h` order.

use core::fmt;

macro_rules! kinds {
    ($($number:literal $variant:ident $name:literal,)*) => {
        /// What a message asks for or says (protocol.md section 3).
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
        #[expect(missing_docs, reason = "the names are the protocol's own")]
        #[repr(u32)]
        pub enum Kind { $($variant = $number,)* }

        impl Kind {
            /// Every type, in order of its number.
            pub const ALL: &[Self] = &[$(Self::$variant,)*];

            /// The type with this number.
            #[must_use]
            pub const fn from_number(number: u32) -> Option<Self> {
                match number {
                    $($number => Some(Self::$variant),)*
                    _ => None,
                }
            }

            /// The number on the wire.
            #[must_use]
            pub const fn number(self) -> u32 {
                match self { $(Self::$variant => $number,)* }
            }

            /// The name as the protocol document spells it.
            #[must_use]
            pub const fn name(self) -> &'static str {
                match self { $(Self::$variant => $name,)* }
            }
        }
    };
}

kinds! {
    0 Control "CONTROL",
    1 Directory "DIRECTORY",
    2 Read "READ",
    3 GetPerms "GET_PERMS",
    4 Watch "WATCH",
    5 Unwatch "UNWATCH",
    6 TransactionStart "TRANSACTION_START",
    7 TransactionEnd "TRANSACTION_END",
    8 Introduce "INTRODUCE",
    9 Release "RELEASE",
    10 GetDomainPath "GET_DOMAIN_PATH",
    11 Write "WRITE",
    12 Mkdir "MKDIR",
    13 Rm "RM",
    14 SetPerms "SET_PERMS",
    15 WatchEvent "WATCH_EVENT",
    16 Error "ERROR",
    17 IsDomainIntroduced "IS_DOMAIN_INTRODUCED",
    18 Resume "RESUME",
    19 SetTarget "SET_TARGET",
    20 Restrict "RESTRICT",
    21 ResetWatches "RESET_WATCHES",
    22 DirectoryPart "DIRECTORY_PART",
    23 GetFeature "GET_FEATURE",
    24 SetFeature "SET_FEATURE",
    25 GetQuota "GET_QUOTA",
    26 SetQuota "SET_QUOTA",
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_run_without_a_gap() {
        for (number, kind) in (0..).zip(Kind::ALL) {
            assert_eq!(kind.number(), number);
            assert_eq!(Kind::from_number(number), Some(*kind));
        }
        assert_eq!(Kind::from_number(27), None);
        assert_eq!(Kind::from_number(u32::MAX), None);
    }
}
