//! What readers must know of the whole process: the process context of OTEP 4719.
//!
//! It says which service this is, which schema the threads' records have, what their keys mean, and
//! where the slot is. Without it, a conforming reader does not look for the slot.

mod identity;
#[cfg(all(target_os = "linux", any(target_arch = "x86_64", target_arch = "aarch64")))]
mod mapping;
#[cfg(not(all(target_os = "linux", any(target_arch = "x86_64", target_arch = "aarch64"))))]
#[path = "elsewhere.rs"]
mod mapping;
mod payload;
mod switch;

use std::error::Error;
use std::sync::{Mutex, MutexGuard, PoisonError, TryLockError};
use std::{fmt, io};

pub(crate) use identity::Identity;
pub use mapping::Backing;
#[cfg(feature = "tracing")]
pub(crate) use switch::forks;

use crate::{diagnose, keys, note, static_tls, stats};
use mapping::Mapping;

/// What the process says about itself; the environment says the rest.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[must_use]
pub struct Config {
    identity: Identity,
}

impl Config {
    /// The resource attribute `service.name`, before what the environment says.
    pub fn service_name(mut self, name: impl Into<String>) -> Self {
        self.identity.service_name = Some(name.into());
        self
    }

    /// The resource attribute `service.namespace`, before what the environment says.
    pub fn service_namespace(mut self, namespace: impl Into<String>) -> Self {
        self.identity.service_namespace = Some(namespace.into());
        self
    }
}

/// What was published.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct InitReport {
    /// `service.name`, if anything names the service.
    pub service_name: Option<String>,
    /// `service.namespace`, if anything names it.
    pub service_namespace: Option<String>,
    /// The slot's distance from the thread pointer, if it is the same in every thread; else readers
    /// have to find the slot by its symbol.
    pub tp_offset: Option<i64>,
    /// How readers find the process context.
    pub backing: Backing,
}

/// Why the process context could not be published. Records are entered all the same, but a
/// conforming reader does not look for them.
#[derive(Debug)]
#[non_exhaustive]
pub enum InitError {
    /// There is no thread-local slot for this target.
    Unsupported,
    /// The environment says `SPAN_MARKER_DISABLE=1`.
    Disabled,
    /// No memory, or no right to map it.
    Map(io::Error),
    /// A child would inherit a context that is not its own.
    KeepFromChildren(io::Error),
    /// Neither a file behind the mapping nor a name for it: nobody would find it.
    Name(io::Error),
}

impl fmt::Display for InitError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Unsupported => "spans can be published on Linux, on x86_64 and aarch64, only",
            Self::Disabled => "SPAN_MARKER_DISABLE is set",
            Self::Map(_) => "cannot map the process context",
            Self::KeepFromChildren(_) => "cannot keep the process context from children",
            Self::Name(_) => "cannot name the process context's mapping",
        })
    }
}

impl Error for InitError {
    fn source(&self) -> Option<&(dyn Error + 'static)> {
        match self {
            Self::Unsupported | Self::Disabled => None,
            Self::Map(error) | Self::KeepFromChildren(error) | Self::Name(error) => Some(error),
        }
    }
}

/// Publishes the process context, with the service that the environment names.
///
/// # Errors
///
/// See [`InitError`]. Idempotent: it may be tried again.
pub fn init() -> Result<InitReport, InitError> {
    init_with(Config::default())
}

/// Publishes the process context, or updates it with what `config` names.
///
/// # Errors
///
/// See [`InitError`]. Idempotent: it may be tried again.
pub fn init_with(config: Config) -> Result<InitReport, InitError> {
    let mut state = lock();
    state.explicit = config.identity.or(std::mem::take(&mut state.explicit));
    state.publish()
}

/// Publishes, with what the tracing SDK's resource says before the environment.
#[cfg(feature = "opentelemetry")]
pub(crate) fn init_with_sdk(sdk: Identity) -> Result<InitReport, InitError> {
    let mut state = lock();
    state.sdk = sdk;
    state.publish()
}

/// Publishes the process context, if this process has not yet; whether records are to be read.
///
/// Called for each record: no lock and no system call after the first one.
#[inline]
pub(crate) fn ensure() -> bool {
    match switch::state() {
        switch::State::On => true,
        switch::State::Off => false,
        switch::State::Undecided => first_record(),
    }
}

/// Does not wait for the lock: in a forked child, it may be one that nobody will ever release.
#[cold]
fn first_record() -> bool {
    let mut state = match STATE.try_lock() {
        Ok(state) => state,
        Err(TryLockError::Poisoned(state)) => state.into_inner(),
        // Somebody is at it.
        Err(TryLockError::WouldBlock) => return !switch::is_disabled(),
    };
    match state.publish() {
        Ok(_) => true,
        Err(InitError::Disabled) => false,
        Err(_) => {
            stats::CONTEXT_UPDATES_FAILED.add();
            true
        }
    }
}

/// Tells readers about new keys, if the process context is published.
pub(crate) fn republish() {
    let mut state = lock();
    if state.mapping.is_some() && state.publish().is_err() {
        stats::CONTEXT_UPDATES_FAILED.add();
    }
}

/// One per process. Written by `init*` and by the registration of keys.
struct State {
    explicit: Identity,
    sdk: Identity,
    mapping: Option<Mapping>,
}

static STATE: Mutex<State> =
    Mutex::new(State { explicit: Identity::NONE, sdk: Identity::NONE, mapping: None });

fn lock() -> MutexGuard<'static, State> {
    STATE.lock().unwrap_or_else(PoisonError::into_inner)
}

impl State {
    /// Publishes, and from then on records do not ask for it, whether it succeeded or not.
    fn publish(&mut self) -> Result<InitReport, InitError> {
        let disabled = switch::is_disabled();
        let report = if disabled { Err(InitError::Disabled) } else { self.publish_context() };
        if !switch::decide(if disabled { switch::State::Off } else { switch::State::On }) {
            return report;
        }
        if !disabled && let Some(tp_offset) = static_tls::tp_offset() {
            note::announce(tp_offset);
        }
        if switch::is_set("SPAN_MARKER_DEBUG") {
            diagnose::tell(&report);
        }
        report
    }

    fn publish_context(&mut self) -> Result<InitReport, InitError> {
        // The SDK before the environment: its resource, which has the environment in it, is what
        // the service's traces carry, and profiles must be found under the same name.
        let identity = self.explicit.clone().or(self.sdk.clone()).or(Identity::from_env());
        let tp_offset = static_tls::tp_offset();
        let payload = payload::encode(&identity, &keys::all(), tp_offset);
        // A forked child does not have its parent's mapping.
        if let Some(mapping) = self.mapping.as_mut().filter(|mapping| mapping.is_ours()) {
            mapping.update(payload);
        } else {
            self.mapping = Some(Mapping::publish(payload)?);
        }
        let backing = self.mapping.as_ref().map_or(Backing::Anonymous, Mapping::backing);
        Ok(InitReport {
            service_name: identity.service_name,
            service_namespace: identity.service_namespace,
            tp_offset,
            backing,
        })
    }
}
