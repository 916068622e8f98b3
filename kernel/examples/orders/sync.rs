//! loom's atomics as the kernel's: they can be made in constants, and those that are not used cost nothing. One that several threads use
//! must be touched before they start.

use std::sync::OnceLock;

pub(crate) use loom::sync::atomic::fence;
pub(crate) use std::sync::atomic::Ordering;

macro_rules! atomics {
    ($($name:ident $value:ty,)*) => {$(
        /// A word that others change, too.
        pub(crate) struct $name {
            first: $value,
            word: OnceLock<Box<loom::sync::atomic::$name>>,
        }

        impl $name {
            pub(crate) const fn new(first: $value) -> Self {
                Self { first, word: OnceLock::new() }
            }

            fn word(&self) -> &loom::sync::atomic::$name {
                self.word.get_or_init(|| Box::new(loom::sync::atomic::$name::new(self.first)))
            }

            pub(crate) fn touch(&self) {
                self.word();
            }

            pub(crate) fn load(&self, order: Ordering) -> $value {
                self.word().load(order)
            }

            pub(crate) fn store(&self, value: $value, order: Ordering) {
                self.word().store(value, order);
            }

            pub(crate) fn swap(&self, value: $value, order: Ordering) -> $value {
                self.word().swap(value, order)
            }

            pub(crate) fn fetch_or(&self, bits: $value, order: Ordering) -> $value {
                self.word().fetch_or(bits, order)
            }

            pub(crate) fn fetch_and(&self, bits: $value, order: Ordering) -> $value {
                self.word().fetch_and(bits, order)
            }

            pub(crate) fn compare_exchange(&self, old: $value, new: $value) -> Result<$value, $value> {
                self.word().compare_exchange(old, new, Ordering::SeqCst, Ordering::SeqCst)
            }
        }
    )*};
}

atomics! {
    AtomicU8 u8,
    AtomicU32 u32,
    AtomicU64 u64,
}
