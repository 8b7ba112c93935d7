import Targets

/// The name of a device that comes back: of its file and its unit.
enum EnabledName {
    /// The most characters.
    static let longest = 32

    /// Letters, digits and "._-", the first a letter or digit: systemd escapes none of them in a unit's name, and no such name is
    /// a path or looks like an option.
    static func isValid(_ name: String) -> Bool {
        let isPlain = { (byte: UInt8) in
            switch byte {
            case UInt8(ascii: "a")...UInt8(ascii: "z"), UInt8(ascii: "A")...UInt8(ascii: "Z"),
                UInt8(ascii: "0")...UInt8(ascii: "9"):
                true
            default: false
            }
        }
        guard let first = name.utf8.first, isPlain(first), name.utf8.count <= longest else { return false }
        return name.utf8.allSatisfy { isPlain($0) || "._-".utf8.contains($0) }
    }

    static func check(_ name: String) throws(CommandFailure) {
        guard isValid(name) else {
            throw CommandFailure(
                .usage, "Usage", "the name can not be '\(name)'",
                remedy:
                    "give 1 to \(longest) letters, digits, dots, dashes and underscores, the first a letter or digit")
        }
    }

    /// The name for a device that was given none: its file's, without ending, or else its target's.
    static func usual(file: String?, target: String) throws(CommandFailure) -> String {
        guard let file else { return target }
        let last = file.split(separator: "/").last.map(String.init) ?? ""
        let stem = last.dropFirst().lastIndex(of: ".").map { String(last[..<$0]) } ?? last
        guard isValid(stem) else {
            throw CommandFailure(
                .usage, "Usage", "'\(last)' makes no name for the device", remedy: "give one, as in --enable=data")
        }
        return stem
    }
}
