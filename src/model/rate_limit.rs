//! What the rate limiter gives out, and what an instance needs of it.

use std::fmt;

use super::Device;

/// What an instance needs of the rate limiter to execute.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct RateLimit {
    /// What it holds while it executes; empty for nothing.
    pub resources: Vec<Resource>,
    /// Its weight against others that need the same: one of weight 2 gets half the chances of one of weight 1. 0 is 1.
    pub priority: u32,
}

/// So much of one resource of the rate limiter.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Resource {
    /// The resource's name.
    pub name: String,
    /// Whether there is one for the whole server and not one for each device.
    pub global: bool,
    /// How much; at least one.
    pub count: u32,
}

/// How much there is of a resource, as the operator says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Amount {
    /// The resource's name.
    pub name: String,
    /// How much.
    pub count: u32,
    /// Of which device; `None` for each that has no amount of its own. Means nothing for a resource that is global.
    pub device: Option<Device>,
}

/// Where there is a resource.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Place {
    /// Once for the whole server.
    Global,
    /// On this device.
    On(Device),
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Place::Global => f.write_str("global"),
            Place::On(device) => device.fmt(f),
        }
    }
}

impl Amount {
    /// How much these say there is of a resource; `None` if they say nothing. Names are the same in upper and lower
    /// case, as for the reference server.
    pub fn find(amounts: &[Amount], name: &str, place: Place) -> Option<u32> {
        let named = || amounts.iter().filter(|amount| amount.name.eq_ignore_ascii_case(name));
        let of_device = match place {
            Place::Global => named().next(),
            Place::On(device) => named().find(|amount| amount.device == Some(device)),
        };
        of_device.or_else(|| named().find(|amount| amount.device.is_none())).map(|amount| amount.count)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn amount(name: &str, count: u32, device: Option<Device>) -> Amount {
        Amount { name: name.to_owned(), count, device }
    }

    #[test]
    fn an_amount_of_a_device_goes_before_that_of_all() {
        let amounts = [amount("R", 4, None), amount("R", 2, Some(Device::Cuda(0)))];
        let find = |name, place| Amount::find(&amounts, name, place);
        assert_eq!(find("r", Place::On(Device::Cuda(0))), Some(2));
        assert_eq!(find("R", Place::On(Device::Cuda(1))), Some(4));
        assert_eq!(find("R", Place::On(Device::Cpu)), Some(4));
        assert_eq!(find("S", Place::Global), None);
    }

    #[test]
    fn for_what_is_global_the_device_means_nothing() {
        let amounts = [amount("R", 2, Some(Device::Cuda(3)))];
        assert_eq!(Amount::find(&amounts, "R", Place::Global), Some(2));
        assert_eq!(Amount::find(&amounts, "R", Place::On(Device::Cuda(0))), None);
    }
}
