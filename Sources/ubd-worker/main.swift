// placeholder
print("nothing yet")
