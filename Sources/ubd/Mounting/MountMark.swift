/// What tells a device that `ubd mount` made from others: the end of its file's name on record. The broker keeps it as long as
/// the device, through deaths and upgrades, and `ubd list` shows it; no file can be left behind or be out of date.
enum MountMark {
    private static let text = " (ubd mount)"

    /// The name on record of a device that `ubd mount` makes.
    static func marked(_ path: String) -> String { AddCommand.label(path + text) }

    static func isOn(_ name: String?) -> Bool { name?.hasSuffix(text) ?? false }

    /// The name of a file that another command adds: one that ends like the mark does not get it.
    static func absent(_ name: String) -> String { isOn(name) ? String(name.dropLast()) + "]" : name }

    static func removed(_ name: String) -> String { isOn(name) ? String(name.dropLast(text.count)) : name }
}
