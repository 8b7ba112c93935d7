/// Sizes in bytes as text.
public enum ByteSize {
    /// The largest size: the kernel counts a device's bytes in a signed 64-bit number.
    public static let maximum = UInt64(Int64.max)

    /// Parses decimal bytes from the wire: only digits.
    ///
    /// A larger number becomes `maximum`, so that a range check refuses it with a fitting message.
    /// - Returns: nil for anything but digits, and for a leading zero.
    public static func decimal(_ text: String) -> UInt64? {
        let digits = text.utf8
        guard !digits.isEmpty, digits.allSatisfy({ (UInt8(ascii: "0")...UInt8(ascii: "9")).contains($0) }) else {
            return nil
        }
        guard digits.count == 1 || digits.first != UInt8(ascii: "0") else { return nil }
        return min(UInt64(text) ?? maximum, maximum)
    }

    /// Parses a size that a person typed: decimal digits and at most one of K, M, G, T (powers of 1024, either case, or
    /// KiB and so on). It refuses KB, which may mean 1000.
    ///
    /// - Returns: nil when the text is no size; at most `maximum`.
    public static func typed(_ text: String) -> UInt64? {
        var digits = Substring(text)
        var factor: UInt64 = 1
        if digits.count > 2, digits.lowercased().hasSuffix("ib") { digits.removeLast(2) }
        let hadUnit = digits.utf8.count != text.utf8.count
        if let letter = digits.last, let power = ["k": 1, "m": 2, "g": 3, "t": 4][letter.lowercased()] {
            factor = 1 << (10 * UInt64(power))
            digits.removeLast()
        } else if hadUnit {
            return nil
        }
        guard let number = decimal(String(digits)) else { return nil }
        let (product, tooBig) = number.multipliedReportingOverflow(by: factor)
        return tooBig ? maximum : min(product, maximum)
    }

    /// A size for people with at most one decimal: "512 B", "1.5 KiB", "250 GiB".
    public static func text(_ bytes: UInt64) -> String {
        let units = ["B", "KiB", "MiB", "GiB", "TiB", "PiB", "EiB"]
        var unit = 0
        var scale: UInt64 = 1
        while unit + 1 < units.count, bytes / scale >= 1024 {
            unit += 1
            scale <<= 10
        }
        let whole = bytes / scale
        // Truncated, not rounded: a device must not look larger than it is.
        let tenths = bytes % scale * 10 / scale
        return tenths == 0 ? "\(whole) \(units[unit])" : "\(whole).\(tenths) \(units[unit])"
    }
}
