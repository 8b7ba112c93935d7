/// All targets of this version of ubd. A new one is a file beside this one, and its name in the list.
public enum TargetList {
    public static let all: [TargetManifest] = [.null, .loop]

    /// The target of a number; nil when this version has none.
    public static func target(number: UInt32) -> TargetManifest? { all.first { $0.number == number } }
}
