//! The exporter against servers that behave well, badly and not at all. The books must add up, and
//! no profile may be stored twice.

#[cfg(test)]
mod fake;
#[cfg(test)]
mod requests;
#[cfg(test)]
mod trouble;
#[cfg(test)]
mod outage;
#[cfg(test)]
mod tls;
