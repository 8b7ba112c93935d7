import BrokerInterface

/// The name of a device that comes back: of its file and its unit.
enum EnabledName {
    static func check(_ name: String) throws(CommandFailure) {
        guard DeviceName.isValid(name) else {
            throw CommandFailure(
                .usage, "Usage", "the name can not be '\(name)'",
                remedy: "give \(DeviceName.rule)")
        }
    }

    /// The name for a device that was given none: its file's, without ending, or else its target's.
    static func usual(file: String?, target: String) throws(CommandFailure) -> String {
        guard let file else { return target }
        let last = file.split(separator: "/").last.map(String.init) ?? ""
        let stem = last.dropFirst().lastIndex(of: ".").map { String(last[..<$0]) } ?? last
        guard DeviceName.isValid(stem) else {
            throw CommandFailure(
                .usage, "Usage", "'\(last)' makes no name for the device", remedy: "give one, as in --enable=data")
        }
        return stem
    }
}
