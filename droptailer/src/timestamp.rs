//! Points in time as Go prints them.

const SECONDS_PER_DAY: u64 = 86_400;

/// `2020-06-17 13:23:27 +0000 UTC`, from seconds since 1970.
pub(crate) fn go_utc(seconds: u64) -> String {
    let (days, rest) = (seconds / SECONDS_PER_DAY, seconds % SECONDS_PER_DAY);
    let (year, month, day) = civil(days);
    let (hour, minute, second) = (rest / 3_600, rest / 60 % 60, rest % 60);
    format!("{year:04}-{month:02}-{day:02} {hour:02}:{minute:02}:{second:02} +0000 UTC")
}

/// Year, month and day in UTC, from seconds since 1970.
pub(crate) fn date(seconds: u64) -> (u64, u64, u64) {
    civil(seconds / SECONDS_PER_DAY)
}

/// Year, month and day of a day counted from 1970-01-01: whole cycles of 400 years, then years, then months.
fn civil(mut days: u64) -> (u64, u64, u64) {
    // 1970 to 2369 and so on; each cycle has 97 leap years, wherever it begins.
    let mut year = 1970 + 400 * (days / 146_097);
    days %= 146_097;
    while days >= days_of_year(year) {
        days -= days_of_year(year);
        year += 1;
    }
    let february = days_of_year(year) - 337;
    let mut month = 1;
    for length in [31, february, 31, 30, 31, 30, 31, 31, 30, 31, 30] {
        if days < length {
            break;
        }
        days -= length;
        month += 1;
    }
    (year, month, days + 1)
}

fn days_of_year(year: u64) -> u64 {
    let leap = year.is_multiple_of(4) && (!year.is_multiple_of(100) || year.is_multiple_of(400));
    365 + u64::from(leap)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_print_as_go_prints_them() {
        for (seconds, text) in [
            (0, "1970-01-01 00:00:00 +0000 UTC"),
            (951_782_400, "2000-02-29 00:00:00 +0000 UTC"),
            (1_592_400_207, "2020-06-17 13:23:27 +0000 UTC"),
            (4_107_542_399, "2100-02-28 23:59:59 +0000 UTC"),
            (4_107_542_400, "2100-03-01 00:00:00 +0000 UTC"),
            (12_622_780_799, "2369-12-31 23:59:59 +0000 UTC"),
            (12_622_780_800, "2370-01-01 00:00:00 +0000 UTC"),
        ] {
            assert_eq!(go_utc(seconds), text);
        }
    }
}
