"""Where people stand: `room` (furniture, light, backdrop), `backdrops`, `cameras`, `occluders`."""
