/// A set of numbers in the kernel's list format: "0-3,8".
public struct NumberList: Equatable, Sendable {
    /// In ascending order; adjacent ranges are merged.
    public let ranges: [ClosedRange<Int>]

    /// Parses numbers and ranges separated by commas, without signs; nil for anything else, for a number above
    /// `highest`, and for a text of more than 4096 bytes.
    public init?(_ text: String, highest: Int) {
        guard text.utf8.count <= 4096 else { return nil }
        var found: [ClosedRange<Int>] = []
        for part in text.split(separator: ",", omittingEmptySubsequences: false) {
            let ends = part.split(separator: "-", omittingEmptySubsequences: false)
                .map { NumberList.number($0, highest) }
            guard ends.count <= 2, let first = ends.first ?? nil, let last = ends.last ?? nil, first <= last else {
                return nil
            }
            found.append(first...last)
        }
        guard !found.isEmpty else { return nil }
        self.init(found)
    }

    /// The union of the ranges, which may overlap.
    public init(_ found: [ClosedRange<Int>]) {
        var joined: [ClosedRange<Int>] = []
        for range in found.sorted(by: { $0.lowerBound < $1.lowerBound }) {
            if let last = joined.last, range.lowerBound <= last.upperBound + 1 {
                joined[joined.count - 1] = last.lowerBound...max(last.upperBound, range.upperBound)
            } else {
                joined.append(range)
            }
        }
        ranges = joined
    }

    private static func number(_ text: Substring, _ highest: Int) -> Int? {
        guard !text.isEmpty, text.utf8.count <= 9, text.utf8.allSatisfy({ (0x30...0x39).contains($0) }) else {
            return nil
        }
        return Int(text).flatMap { $0 <= highest ? $0 : nil }
    }

    /// The shortest text for this set.
    public var text: String {
        ranges.map { $0.count == 1 ? "\($0.lowerBound)" : "\($0.lowerBound)-\($0.upperBound)" }.joined(separator: ",")
    }

    public var isEmpty: Bool { ranges.isEmpty }

    public func contains(_ number: Int) -> Bool { ranges.contains { $0.contains(number) } }

    /// The first number that `other` lacks; nil when it has all.
    public func first(notIn other: NumberList) -> Int? {
        for range in ranges {
            if let missing = range.first(where: { !other.contains($0) }) { return missing }
        }
        return nil
    }

    /// The numbers in either set.
    public func union(_ other: NumberList) -> NumberList { NumberList(ranges + other.ranges) }

    /// The numbers in both sets.
    public func intersection(_ other: NumberList) -> NumberList {
        NumberList(
            ranges.flatMap { one in
                other.ranges.filter { $0.overlaps(one) }.map { $0.clamped(to: one) }
            })
    }

    /// The numbers of `range` that are not in the set.
    public func gaps(in range: ClosedRange<Int>) -> NumberList {
        var gaps: [ClosedRange<Int>] = []
        var next = range.lowerBound
        for taken in ranges where taken.overlaps(range) {
            if next < taken.lowerBound { gaps.append(next...(taken.lowerBound - 1)) }
            next = max(next, taken.upperBound + 1)
        }
        if next <= range.upperBound { gaps.append(next...range.upperBound) }
        return NumberList(gaps)
    }

    /// A bit mask in words of 64 bits.
    public var words: [UInt64] {
        var words = [UInt64](repeating: 0, count: (ranges.last?.upperBound ?? 0) / 64 + 1)
        for range in ranges { for number in range { words[number / 64] |= 1 << UInt64(number % 64) } }
        return words
    }
}
