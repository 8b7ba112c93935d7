/// All targets of this version. To add one, write a file beside this one and list it here.
public enum TargetList {
    public static let all: [TargetManifest] = [.null, .loop, .nbd, .memory, .crypt, .overlay, .fault]

    /// The target with this number; nil when this version has none.
    public static func target(number: UInt32) -> TargetManifest? { all.first { $0.number == number } }
}
