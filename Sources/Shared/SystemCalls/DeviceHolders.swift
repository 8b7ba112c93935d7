/// Where DeviceHolders looks; a test describes another host.
public protocol HolderSources {
    /// The text of a small file of /proc or /sys; nil when it can't be read.
    func text(of path: String) -> String?
    /// The names in a directory; empty when it can't be read.
    func entries(of path: String) -> [String]
    /// "MAJOR:MINOR" of the block device that a path names, links followed; nil when it names none. Never opens it.
    func blockDeviceNumber(of path: String) -> String?
}

/// Who uses a block device so that it must not go: said to the user instead of a bare "busy".
public struct DeviceHolders {
    let host: any HolderSources

    public init(host: any HolderSources) {
        self.host = host
    }

    /// What holds the device of that "MAJOR:MINOR", in words: "mounted on /mnt"; nil when nothing is found.
    public func holder(ofNumber whole: String) -> String? {
        // A mounted partition holds the whole disk as well.
        for number in [whole] + partitions(of: whole) {
            if let mount = mountPoint(of: number) { return "mounted on \(mount)" }
            if let swap = swapName(of: number) { return "in use as swap (\(swap))" }
            let holders = host.entries(of: "/sys/dev/block/\(number)/holders").map(driverName)
            if !holders.isEmpty { return "held by \(holders.joined(separator: ", "))" }
        }
        return nil
    }

    /// Device-mapper devices have a name that people gave them.
    private func driverName(_ disk: String) -> String {
        guard let name = host.text(of: "/sys/block/\(disk)/dm/name")?.split(whereSeparator: \.isNewline).first else {
            return disk
        }
        return "device-mapper device \(name) (\(disk))"
    }

    private func partitions(of number: String) -> [String] {
        let directory = "/sys/dev/block/\(number)"
        return host.entries(of: directory).compactMap { name in
            guard host.text(of: "\(directory)/\(name)/partition") != nil else { return nil }
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
            if source.hasPrefix("/dev/"), host.blockDeviceNumber(of: source) == number {
                return Self.unescaped(fields[4])
            }
        }
        return nil
    }

    /// /proc/swaps: a heading, then lines that begin with the path.
    private func swapName(of number: String) -> String? {
        lines(of: "/proc/swaps").dropFirst().lazy
            .compactMap { $0.split(whereSeparator: \.isWhitespace).first.map(Self.unescaped) }
            .first { host.blockDeviceNumber(of: $0) == number }
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
