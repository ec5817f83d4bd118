//! What each kind of error is on the wire: one table for both protocols.
//!
//! Knows kinds and codes, nothing about requests. The codes are the reference server's where it has the case;
//! deadlines have the code that gRPC itself reserves for them.

use tonic::{Code, Status};

use crate::error::{Error, Kind};

/// The longest message that is sent, in bytes: clients refuse response headers beyond 8 KiB, and escaping can
/// triple a message.
const MESSAGE_BYTES_MAX: usize = 2048;

/// The gRPC code and the HTTP status of a kind of error.
pub const fn of(kind: Kind) -> (Code, u16) {
    match kind {
        Kind::InvalidArgument => (Code::InvalidArgument, 400),
        Kind::NotFound => (Code::NotFound, 404),
        Kind::AlreadyExists => (Code::AlreadyExists, 400),
        Kind::Unimplemented => (Code::Unimplemented, 501),
        Kind::Unavailable | Kind::QueueFull | Kind::BudgetExceeded | Kind::TimedOut | Kind::DeviceLost => {
            (Code::Unavailable, 503)
        }
        Kind::DeadlineExceeded => (Code::DeadlineExceeded, 504),
        Kind::Cancelled => (Code::Cancelled, 400),
        Kind::OutOfMemory => (Code::ResourceExhausted, 500),
        Kind::Backend | Kind::Internal => (Code::Internal, 500),
    }
}

/// The gRPC status of an error; a message too long for a header is cut.
pub fn grpc(error: &Error) -> Status {
    Status::new(of(error.kind()).0, shorten(error.message()))
}

/// `message` cut to what fits into a header, at a character boundary.
pub fn shorten(message: &str) -> String {
    if message.len() <= MESSAGE_BYTES_MAX {
        return message.to_owned();
    }
    format!("{}...", &message[..message.floor_char_boundary(MESSAGE_BYTES_MAX)])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_kind_has_an_error_code_in_both_protocols() {
        for kind in Kind::ALL {
            let (code, http) = of(kind);
            assert_ne!(code, Code::Ok, "{kind:?}");
            assert!((400..600).contains(&http), "{kind:?}");
        }
    }

    #[test]
    fn refusals_under_load_are_unavailable_and_the_callers_own_deadline_is_not() {
        for kind in [Kind::QueueFull, Kind::TimedOut, Kind::BudgetExceeded] {
            assert_eq!(of(kind), (Code::Unavailable, 503));
        }
        assert_eq!(of(Kind::DeadlineExceeded).0, Code::DeadlineExceeded);
    }

    #[test]
    fn a_long_message_is_cut_between_characters() {
        let status = grpc(&Error::invalid("ü".repeat(MESSAGE_BYTES_MAX)));
        assert!(status.message().len() <= MESSAGE_BYTES_MAX + 3);
        assert!(status.message().ends_with("ü..."));
    }
}
