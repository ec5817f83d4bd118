//! Reads `--metrics-config`, the reference server's way to say how times are counted: `<setting>=<value>`, repeated.
//!
//! Begin with [`read`]. Every mistake is collected; what it is about keeps its default.

use super::typed::parse_bool;
use crate::telemetry::metrics::Settings;

/// More quantiles than this are a mistake.
const QUANTILES_MAX: usize = 64;

/// The settings of these texts, and what is wrong with them.
pub fn read(texts: &[String]) -> (Settings, Vec<String>) {
    let mut settings = Settings::default();
    let mut mistakes = Vec::new();
    for text in texts {
        let Some((name, value)) = text.split_once('=') else {
            mistakes.push(format!("'{text}' is not <setting>=<value>"));
            continue;
        };
        let setting = match name {
            "counter_latencies" => &mut settings.counter_latencies,
            "histogram_latencies" => &mut settings.histogram_latencies,
            "summary_latencies" => &mut settings.summary_latencies,
            "summary_quantiles" => {
                match quantiles(value) {
                    Ok(quantiles) => settings.summary_quantiles = quantiles,
                    Err(mistake) => mistakes.push(mistake),
                }
                continue;
            }
            _ => {
                mistakes.push(format!(
                    "'{name}' is not a setting: counter_latencies, histogram_latencies, summary_latencies or \
                     summary_quantiles"
                ));
                continue;
            }
        };
        match parse_bool(value) {
            Some(on) => *setting = on,
            None => mistakes.push(format!("{name} '{value}' is not true or false")),
        }
    }
    (settings, mistakes)
}

/// `<quantile>:<error>,…`. The error is checked and has no effect: quantiles are exact to a ten-thousandth of their value.
fn quantiles(text: &str) -> Result<Vec<f64>, String> {
    let share = |text: &str| text.parse().ok().filter(|share: &f64| (0.0..=1.0).contains(share));
    let each = text.trim_matches('"').split(',').map(|pair| {
        let (quantile, error) = pair.split_once(':').unwrap_or((pair, "0"));
        share(error)
            .and(share(quantile))
            .ok_or_else(|| format!("summary_quantiles: '{pair}' is not <quantile>:<error>, each from 0 to 1"))
    });
    let quantiles = each.collect::<Result<Vec<f64>, String>>()?;
    if quantiles.len() > QUANTILES_MAX {
        return Err(format!("summary_quantiles: more than {QUANTILES_MAX} quantiles"));
    }
    // Each is a series, and no two may have the same labels.
    if let Some(at) = (1..quantiles.len()).find(|&at| quantiles[..at].contains(&quantiles[at])) {
        return Err(format!("summary_quantiles: {} is given twice", quantiles[at]));
    }
    Ok(quantiles)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(texts: &[&str]) -> (Settings, Vec<String>) {
        read(&texts.iter().map(|&text| text.to_owned()).collect::<Vec<_>>())
    }

    #[test]
    fn every_setting_of_the_reference_server_is_read() {
        let (settings, mistakes) = of(&[
            "counter_latencies=false",
            "histogram_latencies=true",
            "summary_latencies=true",
            "summary_quantiles=\"0.5:0.05,0.99:0.001\"",
        ]);
        assert_eq!(mistakes, [""; 0]);
        let expected = Settings {
            counter_latencies: false,
            histogram_latencies: true,
            summary_latencies: true,
            summary_quantiles: vec![0.5, 0.99],
        };
        assert_eq!(settings, expected);
        assert_eq!(of(&[]), (Settings::default(), vec![]));
    }

    #[test]
    fn all_mistakes_are_reported_at_once() {
        let (settings, mistakes) = of(&[
            "counter_latencies=perhaps",
            "latencies=true",
            "summary_quantiles=0.5:0.1,2:0.1",
            "summary_quantiles=0.5:0.1,0.9:0.1,0.50:0.2",
            "summary_latencies",
        ]);
        let expected = [
            "counter_latencies 'perhaps' is not true or false",
            "'latencies' is not a setting: counter_latencies, histogram_latencies, summary_latencies or summary_quantiles",
            "summary_quantiles: '2:0.1' is not <quantile>:<error>, each from 0 to 1",
            "summary_quantiles: 0.5 is given twice",
            "'summary_latencies' is not <setting>=<value>",
        ];
        assert_eq!(mistakes, expected);
        assert_eq!(settings, Settings::default());
    }
}
