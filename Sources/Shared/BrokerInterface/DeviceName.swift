/// A device's name, which its owner chose: the end of its link below /dev/disk/by-ubd, and the name of its unit.
public enum DeviceName {
    /// The most characters.
    public static let longest = 32

    /// What a name is, for people.
    public static let rule =
        "1 to \(longest) letters, digits, dots, dashes and underscores, the first a letter or digit"

    /// Letters, digits and "._-", the first a letter or digit: no path, no option, and nothing that udev or systemd would change.
    public static func isValid(_ name: String) -> Bool {
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

    /// The folder of the links that udev makes.
    public static let folder = "/dev/disk/by-ubd"

    /// The link's name in that folder. A colon is in no name, so a user's link, which begins with her uid, is nobody else's, and
    /// never one of root's.
    public static func link(_ name: String, owner: UInt32) -> String { owner == 0 ? name : "\(owner):\(name)" }
}
