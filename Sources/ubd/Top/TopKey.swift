/// A key that `ubd top` knows.
enum TopKey: Equatable {
    case character(UInt8)
    case up, down, left, right, pageUp, pageDown, home, end, enter, escape
    /// Ctrl-C and Ctrl-D, or the end of the terminal.
    case quit
    /// Ctrl-Z.
    case suspend
    /// Ctrl-L: what is on the screen is drawn anew.
    case redraw
}

/// Takes keys from what a terminal sends. The sequence of a key may arrive in parts, as over a slow connection.
struct TopKeys {
    private var rest: [UInt8] = []

    /// The keys that `bytes` complete.
    mutating func take(_ bytes: some Sequence<UInt8>) -> [TopKey] {
        rest += bytes
        var keys: [TopKey] = []
        while !rest.isEmpty, let (key, count) = next() {
            rest.removeFirst(count)
            if let key { keys.append(key) }
        }
        return keys
    }

    /// What is left is all there will be: an escape alone is that key, anything else is dropped.
    mutating func flush() -> [TopKey] {
        defer { rest = [] }
        return rest == [0x1B] ? [.escape] : []
    }

    /// The next key, nil for one that is not known, and its number of bytes; nil when bytes are missing.
    private func next() -> (TopKey?, Int)? {
        switch rest[0] {
        case 0x03, 0x04: return (.quit, 1)
        case 0x1A: return (.suspend, 1)
        case 0x0C: return (.redraw, 1)
        case 0x0D, 0x0A: return (.enter, 1)
        case 0x1B: return sequence()
        case 0x20...0x7E: return (.character(rest[0]), 1)
        default: return (nil, 1)
        }
    }

    /// Control sequences (ECMA-48, 5.4) and those of the keypad's application mode.
    private func sequence() -> (TopKey?, Int)? {
        guard rest.count > 1 else { return nil }
        if rest[1] == UInt8(ascii: "O") {
            return rest.count > 2 ? (Self.letters[rest[2]], 3) : nil
        }
        guard rest[1] == UInt8(ascii: "[") else { return (.escape, 1) }
        guard let end = rest[2...].firstIndex(where: { (0x40...0x7E).contains($0) }) else {
            // No key is that long.
            return rest.count > 16 ? (nil, rest.count) : nil
        }
        let key = rest[end] == UInt8(ascii: "~") ? Self.numbers[Array(rest[2..<end])] : Self.letters[rest[end]]
        return (key, end + 1)
    }

    private static let letters: [UInt8: TopKey] = [
        UInt8(ascii: "A"): .up, UInt8(ascii: "B"): .down, UInt8(ascii: "C"): .right, UInt8(ascii: "D"): .left,
        UInt8(ascii: "H"): .home, UInt8(ascii: "F"): .end, UInt8(ascii: "M"): .enter,
    ]
    private static let numbers: [[UInt8]: TopKey] = [
        Array("1".utf8): .home, Array("7".utf8): .home, Array("4".utf8): .end, Array("8".utf8): .end,
        Array("5".utf8): .pageUp, Array("6".utf8): .pageDown,
    ]
}
