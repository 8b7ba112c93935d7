/// Who uses a block device: said to the user instead of a bare "busy".
struct DeviceHolders {
    let host: any Machine

    /// What holds the device with that path, in words: "mounted on /mnt"; nil when nothing is found.
    func holder(of node: String) -> String? {
        guard case .blockDevice(let major, let minor) = host.kind(of: node, followsLinks: true) else { return nil }
        let whole = "\(major):\(minor)"
        // A mounted partition holds the whole disk as well.
        let numbers = [whole] + partitions(of: whole)
        for number in numbers {
            if let mount = mountPoint(of: number) { return "mounted on \(mount)" }
            if let swap = swapName(of: number) { return "in use as swap (\(swap))" }
            let holders = host.entries(of: "/sys/dev/block/\(number)/holders")
            if !holders.isEmpty { return "held by \(holders.joined(separator: ", "))" }
        }
        return nil
    }

    private func partitions(of number: String) -> [String] {
        let directory = "/sys/dev/block/\(number)"
        return host.entries(of: directory).compactMap { name in
            guard host.kind(of: "\(directory)/\(name)/partition", followsLinks: true) != nil else { return nil }
            return host.text(of: "\(directory)/\(name)/dev")?.split(whereSeparator: \.isWhitespace).first.map(
                String.init)
        }
    }

    /// /proc/self/mountinfo (proc(5)): "ID PARENT MAJOR:MINOR ROOT MOUNTPOINT OPTIONS [FIELDS] - TYPE SOURCE OPTIONS".
    /// Some file systems (btrfs) have a number of their own there, so the source is compared as well.
    private func mountPoint(of number: String) -> String? {
        for line in lines(of: "/proc/self/mountinfo") {
            let fields = line.split(separator: " ")
            guard fields.count >= 5 else { continue }
            if fields[2] == number { return Self.unescaped(fields[4]) }
            guard let dash = fields.firstIndex(of: "-"), fields.count > dash + 2 else { continue }
            let source = Self.unescaped(fields[dash + 2])
            if source.hasPrefix("/dev/"), self.number(of: source) == number { return Self.unescaped(fields[4]) }
        }
        return nil
    }

    /// /proc/swaps: a heading, then lines that begin with the path.
    private func swapName(of number: String) -> String? {
        lines(of: "/proc/swaps").dropFirst().lazy
            .compactMap { $0.split(whereSeparator: \.isWhitespace).first.map(Self.unescaped) }
            .first { self.number(of: $0) == number }
    }

    private func number(of path: String) -> String? {
        guard case .blockDevice(let major, let minor) = host.kind(of: path, followsLinks: true) else { return nil }
        return "\(major):\(minor)"
    }

    private func lines(of path: String) -> [Substring] {
        (host.text(of: path) ?? "").split(whereSeparator: \.isNewline)
    }

    /// The kernel writes space, tab, newline and backslash as three octal digits behind a backslash.
    static func unescaped(_ field: Substring) -> String {
        var bytes: [UInt8] = []
        var rest = Array(field.utf8)[...]
        while let byte = rest.popFirst() {
            let digits = rest.prefix(3)
            if byte == UInt8(ascii: "\\"), digits.count == 3,
                let value = UInt8(String(decoding: digits, as: UTF8.self), radix: 8)
            {
                bytes.append(value)
                rest.removeFirst(3)
            } else {
                bytes.append(byte)
            }
        }
        return String(decoding: bytes, as: UTF8.self)
    }
}
